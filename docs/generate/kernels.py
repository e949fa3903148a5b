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
        "- **In int8, the reference's bits.** A kernel on 8-bit integers gives what the reference in integers gives "
        "(`leanconv/ops/integer_reference.py`): equal bits for any data, activation and layout, with any number of "
        "threads, with VNNI and without.\n"
        "- **Reads nothing outside.** It touches its maps, weights and results alone: each between pages that must not "
        "be touched.\n"
        f"- **A bounded error.** At most so many times the error of {SUM}:",
        table(["kernel", "computes", "error in float32", "error in bfloat16"], rows),
        "Errors are root mean squares against float64, on normal random numbers. In bfloat16 the plain sum is rounded "
        "once, at its end. Kernels of two steps round what lies between them too, where the processor multiplies pairs "
        "of bfloat16; their figure is larger for that. Strassen and Winograd save products, in float32 alone; "
        '`arithmetic="direct"` switches them off.',
        "The tests: `tests/kernels/promises` (exact, repeatable, error), `tests/kernels/bound/test_quantized.py` "
        "(int8), `tests/kernels/runtime/test_out_of_bounds.py`, `tests/engine/fused/test_repeatable.py` (networks), "
        "and `tests/engine/fused/test_random_networks.py` (random networks against float64; "
        "`pytest --seeds 200:400` tries others).",
        TILES,
    )


TILES = """## Products on matrix tiles

On a processor with AMX, bfloat16 products have a second kernel, in C (`kernels/cpu/bound/tiles.py`,
`kernels/cpu/runtime/tiles_*.c`): 1×1 alone or behind stencils, dense convolutions, transposed ones, gated sums. The
autotuner takes it where it is faster. Stencils stay in vectors. They write a block's rows into scratch, and the
tiles read them there. Groups are multiplied as the dense convolution that they equal, unless `arithmetic="direct"`;
where a 1×1 follows them, it is a second step ("tiles+tiles" in the tables of `optimize`, as "merged" is the kernel of
groups that were merged until they fill a vector).
A gate in front of a 1×1, and activations that take an exponential keep Halide's kernel.

- On an Intel Xeon with AMX, one thread, the blocks of the SPLConv U-Net of base 32 take 3.5 times less in sum at 256
  px than in vectors, and 1.7 times less than oneDNN's where that has them; those of the dense one 12 times less, and
  1.2 times less than oneDNN's (`python -m benchmarks.bf16_blocks`). Whole networks stand in [the results](results.md).
- HetConv(part=4) of 64 to 64 channels at 56×56 takes .12 ms as a dense product on tiles, .81 ms in groups on vectors.
- One source has three arithmetics: AMX; AVX512-BF16; and AMX emulated in plain C, which equals the definition of
  TDPBF16PS bit by bit. So the loops, the packing and the epilogue are tested where no AMX is, and on AMX itself.
- Why not oneDNN's brgemm: PyTorch has it for C++ alone, which means an extension for each version of PyTorch. Its
  sums go to memory before an epilogue of ours could take them.
- Why not Halide's tiles: they match one form of loops, of whole tiles, and cannot be emulated. Odd channels,
  borders and strided maps are not of that form.
- Why not AVX512-BF16 in C elsewhere: Halide's kernels are near the peak too. On a Zen 4 core, one thread, at 256
  px, the blocks of both U-Nets (base 32) took up to 1.00 times Halide's speed in C, most of them .75 to .98
  (`python -m benchmarks.bf16_blocks "leanconv:unet?base=32&conv=splconv"`).
- What AMX allows: stencils in vectors bound a lean network from below. The dense U-Net takes 11.8 M cycles for its
  multiply-adds at 256 px, the SPLConv U-Net 6.5 M, of which 4.2 M are stencils: at most 1.8 times faster, if both
  run at the peak (the same command with `--arithmetic`).
- Products of 8-bit integers have tiles of their own (TDPBUSD, `int8_tiles_*.c`). They read the weights as vectors read
  them, and pack nothing twice. Sums of integers have no order, so the bits are those of the vectors; the autotuner
  takes the faster one. Groups run as a dense product here too, if the sum of a kernel's centre and the 1×1 beside it
  fits 8 bits.
- It holds what stands above: the same bits with any number of threads, exact on small integers, nothing read
  outside. In bfloat16 a gated sum and whole networks have at most twice the error of PyTorch's. The tests:
  `tests/kernels/runtime/test_tiles.py`, `test_int8_tiles.py`, `tests/engine/fused/test_bfloat16.py`."""


def _float32(promise: Promise) -> str:
    return "none" if not promise.error else f"at most {promise.error:g} times"


def _bfloat16(promise: Promise) -> str:
    if promise.short is None:
        return "no bfloat16"
    return "none" if not promise.short else f"at most {promise.short:g} times"
