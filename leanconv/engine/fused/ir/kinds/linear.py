"""A linear layer, until `linear_as_product` (passes/fusion.py) turns it into a block."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from leanconv.engine.fused.ir.activations import activate
from leanconv.engine.fused.ir.graph import Node, Run, TorchOp


@dataclass(frozen=True, repr=False)
class Linear(TorchOp):
    """A matrix product with `O C`, on `N C`."""

    weight: Tensor
    bias: Tensor | None = None
    act: str = ""

    def work(self, node: Node) -> tuple[int, int]:
        return node.shape[0] * self.weight.numel(), node.traffic + self.weight.numel()

    def in_torch(self, node: Node) -> Run:
        weight, act = self.weight.to(node.dtype), self.act
        bias = None if self.bias is None else self.bias.to(node.dtype)
        return (lambda x: activate(F.linear(x, weight, bias), act)) if act else (lambda x: F.linear(x, weight, bias))

    def __repr__(self) -> str:
        return f"[{self.weight.shape[1]}->{self.weight.shape[0]} linear {self.act}]"
