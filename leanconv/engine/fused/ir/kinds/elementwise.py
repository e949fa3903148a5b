"""Pointwise ops that fusion moves into blocks where it can."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from leanconv.engine.fused.ir.activations import activate
from leanconv.engine.fused.ir.graph import Node, Run, TorchOp


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
    """One of `ir.activations.ACTIVATIONS`."""

    name: str

    def in_torch(self, node: Node) -> Run:
        return partial(activate, act=self.name)


@dataclass(frozen=True)
class Scale(TorchOp):
    """A map times a gate `N C 1 1` (squeeze-and-excitation)."""

    def operand_dtypes(self, node: Node) -> list[torch.dtype]:
        return [node.dtype, torch.float32]

    def in_torch(self, node: Node) -> Run:
        return lambda x, gate: x * gate.to(x.dtype)


@dataclass(frozen=True)
class Add(TorchOp):
    """The sum of two maps of one shape."""

    any_operand_decides = True

    def in_torch(self, node: Node) -> Run:
        return torch.add


@dataclass(frozen=True)
class Cast(TorchOp):
    """Its input in the node's dtype."""

    def in_torch(self, node: Node) -> Run:
        return lambda x: x.to(node.dtype)
