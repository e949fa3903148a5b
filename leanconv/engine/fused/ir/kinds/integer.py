"""A primitive on maps of 8-bit integers: `ops.quantized` as a node.

It reads maps of uint8, and gives uint8 or float32. What stands for a convolution, a gated sum or a pooling here was a
node of that kind before passes/quantization.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node, Primitive, Run, T, TorchOp
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.integer_reference import dequantized, primitive, quantized
from leanconv.ops.integer_weights import integer_shapes
from leanconv.ops.quantized import Quantization, Quantized, channels_of
from leanconv.ops.separable import Separable


@dataclass(frozen=True, repr=False)
class Integer(TorchOp):
    """`form` with its weights, as `Quantized` lists them. Inputs of its node: those of the float node.

    That is: the maps of one concatenation, then residual and gate; of a gated sum a, its average, the maps, their
    averages. `label`: of the float node.
    """

    form: Quantized
    weights: tuple[Tensor, ...]
    label: str = ""

    in_float32 = True  # its result has a type of its own

    @property
    def average(self) -> bool:
        return self.form.average

    def operand_dtypes(self, node: Node) -> list[torch.dtype]:
        read = [x for x in self.maps(node.inputs) if x is not None]
        gate = node.inputs[-1] if self.gate else None
        return [torch.uint8 if x in read and x is not gate else torch.float32 for x in node.inputs]

    @property
    def gate(self) -> bool:
        """Whether its last input is a gate of numbers, `N M 1 1`."""
        return isinstance(self.form.form, Separable) and self.form.form.gate

    def verify(self, node: Node) -> str:
        maps = [x for x in self.maps(node.inputs) if x is not None]
        read = maps[1:] if isinstance(self.form.form, GatedSum) else maps[: len(self.form.inputs)]
        sizes = {(x.shape[0], *x.shape[2:]) for x in read}
        if len(sizes) != 1 or len(read) != len(self.form.inputs):
            return "an integer primitive of maps that do not go together"
        n, h, w = sizes.pop()
        kind, adds = self.form.form, self.form.addend is not None
        added = maps[:1] if isinstance(kind, GatedSum) else maps[len(read) : len(read) + adds]
        vectors, widths = self.averages(node.inputs), list[int]()
        if isinstance(kind, GatedSum):
            widths = [kind.width, *kind.channels]
        elif isinstance(kind, Separable) and kind.gate:
            vectors, widths = list(node.inputs[-1:]), [kind.middle]
        if (
            tuple(x.channels for x in read) != channels_of(kind)
            or [x.shape for x in added] != [node.shape] * adds
            or [(*x.shape[:2], x.numbers) for x in vectors] != [(n, c, n * c) for c in widths]
        ):
            return "an integer primitive of maps that do not go together"
        if (found := [(x.dtype, tuple(x.shape)) for x in self.weights]) != (wanted := integer_shapes(self.form)):
            return f"an integer primitive has the weights {found}, not {wanted}"
        given = (n, self.form.width, *self.form.size(h, w))
        right = given == node.shape and self.form.dtype == node.dtype
        return "" if right else f"an integer primitive gives {given} {self.form.dtype}"

    def work(self, node: Node) -> tuple[int, int]:
        n, _, h, w = self.maps(node.inputs)[-1 if isinstance(self.form.form, GatedSum) else 0].shape  # type: ignore[union-attr]
        return n * self.form.macs(h, w), node.traffic + sum(x.numel() for x in self.weights)

    def primitive(self, node: Node) -> Primitive:
        return self.form, list(self.weights)

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        kind, count = self.form.form, len(self.form.inputs)
        if isinstance(kind, GatedSum):
            return [inputs[0], *inputs[2 : 2 + count]]
        found: list[T | None] = list(inputs[:count])
        if not hasattr(kind, "residual"):
            return found
        found.append(inputs[count] if self.form.addend is not None else None)
        return [*found, inputs[-1] if self.gate else None] if isinstance(kind, Separable) else found

    def averages(self, inputs: Sequence[T]) -> list[T]:
        count = len(self.form.inputs)
        return [inputs[1], *inputs[2 + count :]] if isinstance(self.form.form, GatedSum) else []

    def in_torch(self, node: Node) -> Run:
        form, weights = self.form, self.weights

        def run(*inputs: Tensor) -> Any:
            maps = self.maps(inputs)
            if self.gate:
                maps[-1] = inputs[-1].flatten(1)
            y, average = primitive(form, maps, weights, [x.flatten(1) for x in self.averages(inputs)])
            return (y, average[:, :, None, None]) if form.average else y

        return run

    def __repr__(self) -> str:
        return f"int8 {self.label}"


@dataclass(frozen=True, repr=False)
class Quantize(TorchOp):
    """A float32 map as uint8."""

    by: Quantization
    in_float32 = True

    def in_torch(self, node: Node) -> Run:
        return lambda x: quantized(x, self.by)

    def primitive(self, node: Node) -> Primitive:
        return Quantized(Separable((node.channels,)), (self.by,), self.by), []

    def __repr__(self) -> str:
        return "quantize"


@dataclass(frozen=True, repr=False)
class Dequantize(TorchOp):
    """A uint8 map as float32."""

    by: Quantization
    in_float32 = True

    def in_torch(self, node: Node) -> Run:
        return lambda x: dequantized(x, self.by)

    def primitive(self, node: Node) -> Primitive:
        return Quantized(Separable((node.channels,)), (self.by,), None), []

    def __repr__(self) -> str:
        return "dequantize"
