"""The page of the kernels: what each promises, from the constants that the tests hold them to."""

from docs.generate.markdown import page, table
from leanconv.kernels.promises import PROMISES, Promise

SUM = "a plain float32 sum (products rounded, then added one after the other)"


def kernels_page() -> str:
    """docs/kernels.md."""
    rows = [[f"`{name}`", each.computes, _float32(each), _bfloat16(each)] for name, each in PROMISES.items()]
    return page(
        "# What each CPU kernel promises",
        "Every kernel of the fused engine holds this. A test fails where one does not, and where a new kernel lacks "
        "these tests.",
        "- **Repeatable.** The same bits in every call, with any number of threads: averages and gated sums "
        "included, alone and in a tuned network. A kernel compiled for one size of a map serves others too, and the "
        "width of its tile can change a last bit: so for the same sizes in the same order. A step that stays in "
        "PyTorch is PyTorch's.\n"
        "- **Exact on small integers.** Where every partial sum is a whole number that float32 holds, the result is "
        "the sum itself, in float32 and bfloat16. The kernels for training are exact likewise.\n"
        "- **Reads nothing outside.** It touches its maps, weights and results alone: each between pages that must not "
        "be touched.\n"
        f"- **A bounded error.** At most so many times the error of {SUM}:",
        table(["kernel", "computes", "error in float32", "error in bfloat16"], rows),
        "Errors are root mean squares against float64, on normal random numbers. In bfloat16 the plain sum is rounded "
        "once, at its end. Kernels of two steps round what lies between them too, where the processor multiplies pairs "
        "of bfloat16; their figure is larger for that. Strassen and Winograd save products, in float32 alone; "
        '`arithmetic="direct"` switches them off.',
        "The tests: `tests/kernels/promises` (exact, repeatable, error), "
        "`tests/kernels/runtime/test_out_of_bounds.py`, `tests/engine/fused/test_repeatable.py` (networks), and "
        "`tests/engine/fused/test_random_networks.py` (random networks against float64; `pytest --seeds 200:400` tries "
        "others).",
    )


def _float32(promise: Promise) -> str:
    return "none" if not promise.error else f"at most {promise.error:g} times"


def _bfloat16(promise: Promise) -> str:
    if promise.short is None:
        return "no bfloat16"
    return "none" if not promise.short else f"at most {promise.short:g} times"
