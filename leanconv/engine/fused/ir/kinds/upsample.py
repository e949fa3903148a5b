"""ConvTranspose2d 2×2 with stride 2: each input pixel gives four output pixels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from leanconv.engine.fused.ir.activations import activate
from leanconv.engine.fused.ir.graph import Node, Primitive, Run, TorchOp
from leanconv.kernels import to_channels_last
from leanconv.ops import upsample as primitives
from leanconv.ops.activations import ACTIVATIONS


@dataclass(frozen=True, repr=False)
class Upsample(TorchOp):
    """`weight`: `C O 2 2`."""

    weight: Tensor
    bias: Tensor | None = None
    act: str = ""

    def verify(self, node: Node) -> str:
        (n, c, h, w), o = node.inputs[0].shape, self.weight.shape[1]
        right = c == self.weight.shape[0] and node.shape == (n, o, 2 * h, 2 * w)
        return "" if right else f"a transposed convolution of {c} channels does not give {node.shape}"

    def work(self, node: Node) -> tuple[int, int]:
        n, _, h, w = node.inputs[0].shape
        return n * h * w * self.weight.numel(), node.traffic + self.weight.numel()

    def primitive(self, node: Node) -> Primitive | None:
        if self.act and self.act not in ACTIVATIONS:
            return None
        c, o = self.weight.shape[:2]
        weights = [self.weight] + ([] if self.bias is None else [self.bias])
        return primitives.Upsample((c,), o, 2, self.bias is not None, self.act or "none"), weights

    def in_torch(self, node: Node) -> Run:
        weight = self.weight.to(node.dtype).contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.to(node.dtype)
        act = self.act
        return lambda x: activate(torch.conv_transpose2d(to_channels_last(x), weight, bias, (2, 2)), act)

    def __repr__(self) -> str:
        return f"[{self.weight.shape[0]}->{self.weight.shape[1]} transposed 2x2 {self.act}]"
