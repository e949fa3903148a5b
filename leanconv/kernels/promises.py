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
        short: the same in bfloat16, against the plain sum rounded to bfloat16; None: it has no bfloat16.
    """

    computes: str
    error: float
    short: float | None = None


# By pipeline: room and function in `kernels/cpu/pipelines`.
PROMISES: dict[str, Promise] = {}
