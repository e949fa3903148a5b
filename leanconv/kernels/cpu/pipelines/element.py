"""Element types of maps and weights, and the kernel arguments (Halide images) that have them."""

from dataclasses import dataclass
from typing import Any

import torch

from leanconv.kernels.cpu.pipelines.bfloat16 import Bfloat16Map, quiet_nan, round_to_bfloat16, truncate_to_bfloat16
from leanconv.kernels.cpu.pipelines.frontend import halide


@dataclass(frozen=True)
class ElementType:
    """How a kernel stores the numbers of its maps. It always adds in float32.

    Kernels convert through these methods alone. 8-bit integers have kernels of their own (`runtime/int8.c`).

    Args:
        dtype: float32 or bfloat16.
        pairs: whether one instruction multiplies two channels of bfloat16 and adds both products (AVX512-BF16). Then
            the operands of a product stay bfloat16; otherwise they are widened to float32 first.
    """

    dtype: torch.dtype = torch.float32
    pairs: bool = False

    @property
    def _bfloat16(self) -> bool:
        return self.dtype == torch.bfloat16

    @property
    def halide_type(self) -> Any:
        """Halide's type of a stored number. Halide gets bfloat16 as bits, and this package rounds."""
        hl = halide()
        return hl.UInt(16) if self._bfloat16 else hl.Float(32)

    @property
    def bytes(self) -> int:
        """Bytes of one number."""
        return self.dtype.itemsize

    def steps(self, channels: int) -> int:
        """Vector multiply-adds that a sum over `channels` takes."""
        return -(-channels // 2) if self.pairs else channels

    def widen(self, source: Any) -> Any:
        """A map that is read as float32."""
        return Bfloat16Map(source) if self._bfloat16 else source

    def narrow(self, value: Any) -> Any:
        """A float32 rounded to what is stored."""
        return round_to_bfloat16(value) if self._bfloat16 else value

    def narrow_exact(self, value: Any) -> Any:
        """A float32 that already holds a number of this type, as it is stored."""
        return truncate_to_bfloat16(value) if self._bfloat16 else value

    def quiet_nan(self, value: Any) -> Any:
        """A float32 from outside (a gate) that is safe to `narrow`."""
        return quiet_nan(value) if self._bfloat16 else value

    @property
    def scratch_type(self) -> Any:
        """Halide's type of scratch that a product reads: bfloat16 only if products take pairs."""
        return self.halide_type if self.pairs else halide().Float(32)

    def to_scratch(self, value: Any) -> Any:
        """A float32 as scratch stores it."""
        return self.narrow(value) if self.pairs else value

    def from_scratch(self, func: Any) -> Any:
        """Scratch as an operand of `gemm.projection`."""
        return Bfloat16Map(func) if self.pairs else func


FLOAT32, BFLOAT16 = ElementType(), ElementType(torch.bfloat16)
BFLOAT16_PAIRS = ElementType(torch.bfloat16, pairs=True)


def element_type(dtype: torch.dtype, pairs: bool) -> ElementType:
    """The element type of maps of `dtype` (float32 or bfloat16); `pairs`: whether the processor multiplies pairs."""
    if dtype != torch.bfloat16:
        return FLOAT32
    return BFLOAT16_PAIRS if pairs else BFLOAT16


def image(name: str, dimensions: int, element: ElementType = FLOAT32) -> Any:
    """A kernel argument whose first dimension is dense."""
    made = halide().ImageParam(element.halide_type, dimensions, name)
    made.dim(0).set_stride(1).set_min(0)
    return made


def map_image(name: str, pixel: int, element: ElementType, dimensions: int = 3) -> Any:
    """A map `c x y`, or `c x` with its pixels in one row; `pixel` numbers lie from one pixel to the next."""
    made = image(name, dimensions, element)
    made.dim(1).set_stride(pixel)
    if dimensions == 3:
        made.dim(1).set_min(0)
    return made


def weights_image(name: str, block: int, channels: int, element: ElementType) -> Any:
    """Weights of `packing.pack_projection`: `block c blocks`, or `2 block c/2 blocks` if products take pairs."""
    if element.pairs:
        sizes, made = [2, block, -(-channels // 2)], image(name, 4, element)
    else:
        sizes, made = [block, channels], image(name, 3)
    # Constant extents and strides: Halide then computes addresses at compile time.
    step = 1
    for place, size in enumerate(sizes):
        made.dim(place).set_bounds(0, size).set_stride(step)
        step *= size
    made.dim(len(sizes)).set_min(0).set_stride(step)
    return made
