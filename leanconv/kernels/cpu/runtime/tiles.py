"""Products on tiles in C: the structures of tiles.h, and which arithmetic this process runs.

"amx": tiles of 16 × 64 bytes in a unit of their own (TDPBF16PS). "pairs": vectors of AVX512-BF16. "emulated": what AMX
defines, in plain C, for processors that are described and not there.
"""

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.tuning.cpu import Cpu, this_cpu

TILE = 16  # pixels of a tile, and its outputs
MOST_DEPTH, MOST_OPERANDS = 32, 64
ACTIVATIONS = ("none", "relu", "relu6", "hardsigmoid", "hardswish")  # tiles.h counts them
# Pixels that are computed together.
BLOCKS = {"amx": 2 * TILE, "emulated": 2 * TILE, "pairs": 12}


@dataclass(frozen=True)
class Operand:
    """One factor: `tiles` tiles of each pixel. Steps in numbers; see `operand_t`."""

    argument: int
    offset: int
    pixel: int
    line: int
    tiles: int


@dataclass(frozen=True)
class Panel:
    """A copy of what a block reads; see `panel_t`."""

    maps: int = 0
    first: int = 0
    planes: int = 0
    r: int = 1
    s: int = 1
    sh: int = 1
    sw: int = 1
    dh: int = 1
    dw: int = 1
    top: int = 0
    left: int = 0
    columns: int = 0
    wide: int = 0
    gathered: int = 0


@dataclass(frozen=True)
class Call:
    """A product; see `tiles_t`."""

    outputs: int
    depth: int
    columns: int
    period: int
    bias: int
    residual: int
    blend: int
    activation: str
    operands: Sequence[Operand]
    panel: Panel = Panel()

    def packed(self) -> Tensor:
        """The structure, as the kernel's first argument. Raises BadInput for more operands than it has room for."""
        if len(self.operands) > MOST_OPERANDS:
            raise BadInput(f"a product of {len(self.operands)} operands: at most {MOST_OPERANDS}")
        head = [self.outputs, self.depth, self.columns, self.period, self.bias, self.residual, self.blend]
        numbers = [*head, ACTIVATIONS.index(self.activation), len(self.operands), *astuple(self.panel)]
        return torch.tensor([*numbers, *(x for operand in self.operands for x in astuple(operand))], dtype=torch.int32)


def arithmetic(cpu: Cpu) -> str:
    """The arithmetic for a processor; "" where it multiplies no pairs of bfloat16, or without a runtime."""
    if not (cpu.amx or cpu.bf16) or build.runtime("tiles") is None:
        return ""
    here = this_cpu()
    if (cpu.amx and not here.amx) or (cpu.bf16 and not here.bf16):
        return "emulated"
    return next((name for name, has in (("amx", cpu.amx), ("pairs", cpu.bf16)) if has and _runs(name)), "")


def kernel(name: str) -> tuple[int, Any]:
    """The kernel of an arithmetic, as `compilation.build.kernel` gives it."""
    lib = build.runtime("tiles")
    return ctypes.cast(getattr(lib, f"lc_tiles_{name}"), ctypes.c_void_p).value or 0, lib


@functools.cache
def _runs(name: str) -> bool:
    """Whether the runtime was compiled with it, and the system lets this process use it."""
    return bool(getattr(build.runtime("tiles"), f"lc_has_tiles_{name}")())


def depth_of(lengths: Sequence[int]) -> int:
    """Numbers of a tile that divide all of them: even, at most 32; 0 where there are none."""
    fitting = (depth for depth in range(MOST_DEPTH, 0, -2) if all(length % depth == 0 for length in lengths))
    return next(fitting, 0)
