"""The sizes of one convolution or matrix product as it ran: what a model of some hardware needs to know of it."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from leanconv.measure.ops import PRODUCTS, base_name, recurrent_weights


@dataclass(frozen=True)
class Contraction:
    """A convolution; a product of B pairs of matrices is one of 1×1 taps in B groups, a row of the left one a place.

    Attributes:
        n: images (1 for products).
        c, o, groups: channels in and out over all groups.
        kernel, stride, padded, out: one number an axis; `padded` is the input with its padding.
        transposed: of a transposed convolution `padded` is the bare input, whose places it multiplies.
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
        """Output places of one image; of a transposed convolution its input places."""
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


def contractions(func: Any, kind: str, args: tuple[Any, ...], out: Any) -> tuple[Contraction, ...]:
    """What an operation of one of the kinds `conv linear matmul attention` multiplies; `()` where that is not known."""
    name = base_name(func)
    if kind == "conv":
        result = out[0] if isinstance(out, (tuple, list)) else out
        found = _convolution(func, args, result)
        return () if found is None else (found,)
    if name in PRODUCTS:
        a, b = (args[place] for place in PRODUCTS[name])
        return (_product(math.prod(a.shape[:-2]), *_sides(a, b)),)
    if name == "mkldnn_rnn_layer":  # all steps' inputs at once, then the states step by step
        (steps, batch, width), (inner, outer) = args[0].shape, recurrent_weights(name, args)
        gates, state = outer.shape
        return _product(1, steps * batch, width, inner.shape[0]), _product(steps, batch, state, gates)
    if kind == "attention" and len(args) > 2 and all(isinstance(each, Tensor) and each.dim() == 4 for each in args[:3]):
        query, key, value = args[:3]
        heads, (asked, width), known = math.prod(query.shape[:2]), query.shape[-2:], key.shape[-2]
        return _product(heads, asked, width, known), _product(heads, asked, known, value.shape[-1])
    return ()


def _sides(a: Tensor, b: Tensor) -> tuple[int, int, int]:
    """(rows, length, columns) of a product; a vector is one row, or one column."""
    return (a.shape[-2] if a.dim() > 1 else 1), a.shape[-1], (b.shape[-1] if b.dim() > 1 else 1)


def _product(batch: int, rows: int, length: int, columns: int) -> Contraction:
    return Contraction(1, batch * length, batch * columns, batch, (1, 1), (1, 1), (rows, 1), (rows, 1))


def _convolution(func: Any, args: tuple[Any, ...], out: Tensor) -> Contraction | None:
    """From the arguments by their names in the operation's schema; a 1-D one lies along the width."""
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False))
    x, weight = args[0], args[1]
    axes = weight.dim() - 2
    transposed, groups = bool(given.get("transposed", False)), int(given.get("groups", 1))
    if "_conv_depthwise2d" in func.name() or "conv_depthwise3d" in func.name():
        groups = x.shape[1]
    stride, padding = _each(given.get("stride", 1), axes), given.get("padding", 0)
    if isinstance(padding, str):
        return None
    padding = _each(padding, axes)
    sizes = list(x.shape[2:])
    padded = sizes if transposed else [size + 2 * pad for size, pad in zip(sizes, padding, strict=True)]
    o = weight.shape[1] * groups if transposed else weight.shape[0]
    flat = [1] if axes == 1 else []
    kernel, strides, place, result = (
        tuple(int(size) for size in [*flat, *each]) for each in (weight.shape[2:], stride, padded, out.shape[2:])
    )
    return Contraction(x.shape[0], x.shape[1], o, groups, kernel, strides, place, result, transposed)


def _each(value: Any, axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * axes if len(values) == 1 else values
