"""What kernels are chosen for, as one value: the processor, and where products may be saved."""

import os
from dataclasses import dataclass, field

from leanconv.errors import BadInput
from leanconv.kernels.cpu.tuning.cpu import Cpu, this_cpu

ARITHMETICS = ("lean", "direct", "fewest")
VARIABLE = "LEANCONV_ARITHMETIC"


def default_arithmetic() -> str:
    """The environment variable LEANCONV_ARITHMETIC, else "lean". Raises BadInput for an unknown name."""
    found = os.environ.get(VARIABLE) or ARITHMETICS[0]
    return _checked(VARIABLE, found)


def _checked(name: str, value: str) -> str:
    if value not in ARITHMETICS:
        raise BadInput(f"{name} is {value!r}; it may be {', '.join(ARITHMETICS)}")
    return value


@dataclass(frozen=True)
class Target:
    """What kernels are chosen for.

    Attributes:
        cpu: the processor that schedules are chosen for (default: this one). The code is compiled for this one,
            within its instruction set `isa`. Speeds that it does not say are calibrated where a kernel is bound.
        arithmetic: where Strassen and Winograd save products (default: `default_arithmetic`). "lean": in 1×1
            convolutions, and in the 3×3 sums of groups that this project's operators consist of. "direct": nowhere. An
            output is then a sum of its own products. NaN, infinity or a far larger number elsewhere in the map does not
            reach it. "fewest": in dense 3×3 convolutions too.

    Raises: BadInput for an unknown arithmetic.
    """

    cpu: Cpu = field(default_factory=this_cpu)
    arithmetic: str = field(default_factory=default_arithmetic)

    def __post_init__(self) -> None:
        _checked("arithmetic", self.arithmetic)
