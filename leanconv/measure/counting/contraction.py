"""The sizes of one executed convolution or matrix product: the input of a hardware model."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Contraction:
    """A convolution. B matrix products are a 1×1 convolution in B groups; each row of the left matrix is one place.

    Attributes:
        n: images (1 for products).
        c, o, groups: channels in and out over all groups.
        kernel, stride, padded, out: one number per axis; `padded` is the input with its padding.
        transposed: a transposed convolution multiplies input places; its `padded` is the bare input.
    """

    n: int
    c: int
    o: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padded: tuple[int, ...]
    out: tuple[int, ...]
    transposed: bool = False

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def places(self) -> int:
        """Output places of one image; input places for a transposed convolution."""
        return math.prod(self.padded if self.transposed else self.out)

    @property
    def macs(self) -> int:
        return self.n * self.places * self.c // self.groups * self.o * self.taps

    @property
    def is_depthwise(self) -> bool:
        """One input channel a filter, more than one group, more than one tap."""
        return self.groups == self.c > 1 and self.taps > 1

    @property
    def kind(self) -> str:
        """dense, pointwise, depthwise or grouped."""
        if self.is_depthwise:
            return "depthwise"
        if self.groups > 1:
            return "grouped"
        return "dense" if self.taps > 1 else "pointwise"


def product(batch: int, rows: int, length: int, columns: int) -> Contraction:
    """`batch` products of `rows` by `length` by `columns`."""
    return Contraction(1, batch * length, batch * columns, batch, (1, 1), (1, 1), (rows, 1), (rows, 1))
