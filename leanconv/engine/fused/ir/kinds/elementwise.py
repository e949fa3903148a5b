"""Pointwise ops that fusion moves into blocks where it can."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.activations import activate
from leanconv.engine.fused.ir.graph import Node, Primitive, Run, T, TorchOp
from leanconv.ops import activations as ops
from leanconv.ops.exact import exact_mean
from leanconv.ops.separable import Separable


@dataclass(frozen=True, repr=False)
class Affine(TorchOp):
    """`x · scale + shift` per channel: BatchNorm, a bias, a layer scale."""

    scale: Tensor
    shift: Tensor

    def in_torch(self, node: Node) -> Run:
        scale, shift = (v.to(node.dtype)[:, None, None] for v in (self.scale, self.shift))
        return lambda x: torch.addcmul(shift, x, scale)

    def __repr__(self) -> str:
        return "Affine"


@dataclass(frozen=True)
class Activation(TorchOp):
    """One of `ir.activations.ACTIVATIONS`. Its primitive is for integers alone."""

    name: str

    def primitive(self, node: Node) -> Primitive | None:
        if self.name not in ops.ACTIVATIONS or len(node.shape) != 4:
            return None
        return Separable((node.channels,), activation=self.name), []

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        return [*inputs, None, None]

    def in_torch(self, node: Node) -> Run:
        return partial(activate, act=self.name)


@dataclass(frozen=True)
class Scale(TorchOp):
    """A map times a gate `N C 1 1` (squeeze-and-excitation)."""

    def operand_dtypes(self, node: Node) -> list[torch.dtype]:
        return [node.dtype, torch.float32]

    def in_torch(self, node: Node) -> Run:
        return lambda x, gate: x * gate.to(x.dtype)


@dataclass(frozen=True, repr=False)
class Add(TorchOp):
    """The activated sum of two maps of one shape.

    Attributes:
        act: an activation's name; "" for none.
        average: a second result, the average over height and width, `N C 1 1`.
    """

    act: str = ""
    average: bool = False
    any_operand_decides = True

    def primitive(self, node: Node) -> Primitive | None:
        if len(node.shape) != 4 or any(x.shape != node.shape for x in node.inputs):
            return None
        if self.act and self.act not in ops.ACTIVATIONS:
            return None
        act = self.act or "none"
        return Separable((node.channels,), activation=act, residual=True, average=self.average), []

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        return [*inputs, None]

    def in_torch(self, node: Node) -> Run:
        if not self.act and not self.average:
            return torch.add
        return partial(_added, self.act, self.average)

    def __repr__(self) -> str:
        return f"[add{' ' * bool(self.act)}{self.act}]"


def _added(act: str, average: bool, a: Tensor, b: Tensor) -> Any:
    y = torch.add(a, b)
    y = activate(y, act) if act else y
    return (y, exact_mean(y, keepdim=True)) if average else y


@dataclass(frozen=True)
class Cast(TorchOp):
    """Its input in the node's dtype."""

    def in_torch(self, node: Node) -> Run:
        return lambda x: x.to(node.dtype)
