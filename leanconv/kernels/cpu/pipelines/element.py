"""How a kernel's maps and weights are stored: in float32, or in bfloat16, which is computed with in float32."""

from dataclasses import dataclass
from typing import Any

import torch

from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.tuning.cpu import Cpu


@dataclass(frozen=True)
class ElementType:
    """What the numbers of a kernel's maps are.

    Args:
        half: bfloat16, which Halide sees as its 16 bits; else float32.
        pairs: products take two channels of bfloat16 at once, by the machine's own instruction: what they read and
            their weights are bfloat16 then. Otherwise numbers are widened before the product.
    """

    half: bool = False
    pairs: bool = False

    @property
    def type(self) -> Any:
        """Halide's type of a stored number."""
        hl = halide()
        return hl.UInt(16) if self.half else hl.Float(32)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.half else torch.float32

    @property
    def bytes(self) -> int:
        """Of a number."""
        return 2 if self.half else 4

    def steps(self, depth: int) -> int:
        """Multiply-adds of vectors that a sum over so many channels takes."""
        return -(-depth // 2) if self.pairs else depth

    def read(self, source: Any) -> Any:
        """A map, to be read as float32."""
        return Widened(source) if self.half else source

    def narrow(self, value: Any) -> Any:
        """A float32 as it is stored: bfloat16 is rounded to nearest, ties to even."""
        if not self.half:
            return value
        hl = halide()
        bits = hl.reinterpret(hl.UInt(32), value)
        return hl.cast(hl.UInt(16), (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

    def narrow_exact(self, value: Any) -> Any:
        """Likewise for a float32 that is a bfloat16 already."""
        hl = halide()
        return hl.cast(hl.UInt(16), hl.reinterpret(hl.UInt(32), value) >> 16) if self.half else value

    def gate(self, value: Any) -> Any:
        """A float32 factor of any origin for what will be `narrow`: a NaN of many bits would be rounded up to -0."""
        if not self.half:
            return value
        hl = halide()
        bits = hl.reinterpret(hl.UInt(32), value)
        return hl.reinterpret(hl.Float(32), hl.select((bits << 1) > (0xFF << 24), hl.u32(0x7FC00000), bits))

    def factor(self, value: Any) -> Any:
        """A float32 as it is stored in scratch that a product reads."""
        return self.narrow(value) if self.pairs else value

    @property
    def factor_type(self) -> Any:
        """Halide's type of a `factor`."""
        return self.type if self.pairs else halide().Float(32)

    def factors(self, func: Any) -> Any:
        """Scratch of `factor`, to be read by `projection`."""
        return Widened(func) if self.pairs else func


FLOAT = ElementType()


class Widened:
    """A map or scratch of bfloat16, read as float32; `bits` is what is stored."""

    def __init__(self, bits: Any) -> None:
        self.bits = bits

    def __getitem__(self, place: Any) -> Any:
        hl = halide()
        return hl.reinterpret(hl.Float(32), hl.cast(hl.UInt(32), self.bits[place]) << 16)

    def factor(self, *place: Any) -> Any:
        """The number as Halide knows it in a sum of two products: a bfloat16, cast."""
        hl = halide()
        return hl.cast(hl.Float(32), hl.reinterpret(hl.BFloat(16), self.bits[place]))


def element_type(dtype: torch.dtype, cpu: Cpu) -> ElementType:
    """How maps of `dtype` (float32 or bfloat16) are stored and multiplied on a processor."""
    return ElementType(True, cpu.bf16) if dtype == torch.bfloat16 else FLOAT


def image(name: str, dimensions: int, element: ElementType = FLOAT) -> Any:
    """An argument of the kernel, its first dimension dense."""
    made = halide().ImageParam(element.type, dimensions, name)
    made.dim(0).set_stride(1).set_min(0)
    return made


def map_image(name: str, pixel: int, element: ElementType, dimensions: int = 3) -> Any:
    """A map: `c x y`, or `c x` with all its pixels in a row; `pixel` numbers from one to the next."""
    made = image(name, dimensions, element)
    made.dim(1).set_stride(pixel)
    if dimensions == 3:
        made.dim(1).set_min(0)
    return made


def weights_image(name: str, block: int, channels: int, element: ElementType) -> Any:
    """Packed weights of a projection, dense: `block c blocks` in float32, `2 block c/2 blocks` where it takes pairs."""
    if element.pairs:
        sizes, made = [2, block, -(-channels // 2)], image(name, 4, element)
    else:
        sizes, made = [block, channels], image(name, 3)
    step = 1
    for place, size in enumerate(sizes):
        made.dim(place).set_bounds(0, size).set_stride(step)
        step *= size
    made.dim(len(sizes)).set_min(0).set_stride(step)
    return made
