"""What each kernel promises, in numbers: its rounding error beside that of a plain sum in float32.

`tests/kernels/promises` fails where one is broken; the page docs/kernels.md prints them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Promise:
    """The promise of one kernel.

    Attributes:
        computes: what, in a few words.
        error: its error in float32 is at most so many times that of a plain sum: products rounded, and added one after
            the other. Both as root mean squares against float64. 0: it rounds nothing.
        short: the same in bfloat16, against the plain sum rounded once to bfloat16; None: it takes no bfloat16.
    """

    computes: str
    error: float
    short: float | None = None


# By pipeline: its file in `kernels/cpu/pipelines`, and its function there where that is not `pipeline`.
PROMISES = {
    "pointwise": Promise("1×1, with residual or gate; the second pass of a gated sum", 1.0, 1.5),
    "separable.depthwise": Promise("depthwise stencils, one after the other or side by side", 1.0, 1.1),
    "separable.projected": Promise("depthwise stencils, then a 1×1", 1.0, 1.5),
    "grouped": Promise("convolution in groups, with a 1×1 beside or behind it; dense convolution", 1.5, 2.0),
    "upsample": Promise("transposed convolution whose kernel is its stride", 1.0, 1.1),
    "max_pool": Promise("max-pooling", 0.0, 0.0),
    "strassen": Promise("1×1 by Strassen's seven products", 1.5),
    "separable_strassen.projected": Promise("depthwise stencils, then a 1×1 by Strassen's seven products", 2.0),
    "winograd": Promise("3×3 convolution, in groups or dense, by Winograd's F(2×2, 3×3)", 1.5),
}


def name_of(module: str, function: str) -> str:
    """The name in PROMISES of a pipeline, from its module and function."""
    room = module.rpartition(".")[2]
    return room if function == "pipeline" else f"{room}.{function}"
