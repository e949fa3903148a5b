"""The softmax-pair blend of a map and a 1×1: `ops.gated_sum` as a node."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.engine.fused.ir.activations import activate
from leanconv.engine.fused.ir.graph import Node, Primitive, Run, T, TorchOp
from leanconv.kernels import to_channels_last
from leanconv.ops import gated_sum as primitives
from leanconv.ops.activations import ACTIVATIONS
from leanconv.ops.exact import exact_mean


@dataclass(frozen=True, repr=False)
class GatedSum(TorchOp):
    """y = act(scale · (g · a + (1 - g) · b) + shift), b = conv1x1(x), g = sigmoid(mean a - mean b).

    Inputs of its node: a, mean(a), the `concat` maps that x is the concatenation of, the averages of those maps.
    `weight`: `O C 1 1` of the 1×1.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    shift: Tensor | None = None
    act: str = ""
    concat: int = 1
    average: bool = False  # a second result: the average of y over height and width, `N O 1 1`

    def operand_dtypes(self, node: Node) -> list[torch.dtype]:
        maps, averages = [node.dtype], [torch.float32]
        return maps + averages + maps * self.concat + averages * self.concat

    def verify(self, node: Node) -> str:
        wanted = len(node.inputs) == 2 + 2 * self.concat and node.inputs[0].shape == node.shape
        read = sum(x.channels for x in node.inputs[2 : 2 + self.concat])
        return "" if wanted and read == self.weight.shape[1] else "a gated sum of maps that do not go together"

    def work(self, node: Node) -> tuple[int, int]:
        n, _, h, w = node.shape
        return n * h * w * self.weight.numel(), node.traffic + self.weight.numel()

    def primitive(self, node: Node) -> Primitive | None:
        if self.act and self.act not in ACTIVATIONS:
            return None
        weights = [self.weight] + ([] if self.bias is None else [self.bias])
        affine = self.scale is not None and self.shift is not None
        if self.scale is not None and self.shift is not None:
            weights += [self.scale, self.shift]
        channels = tuple(x.channels for x in node.inputs[2 : 2 + self.concat])
        o, has_bias, act = self.weight.shape[0], self.bias is not None, self.act or "none"
        return primitives.GatedSum(channels, o, has_bias, affine, act, self.average), weights

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        return [inputs[0], *inputs[2 : 2 + self.concat]]

    def averages(self, inputs: Sequence[T]) -> list[T]:
        return [inputs[1], *inputs[2 + self.concat :]]

    def in_torch(self, node: Node) -> Run:
        dtype, concat, act, average = node.dtype, self.concat, self.act, self.average
        exact = torch.float32 if dtype.itemsize == 2 else dtype  # of the gate
        weight = self.weight[:, :, 0, 0].to(exact).contiguous()
        kernel = self.weight.to(dtype).contiguous(memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.to(dtype)
        exact_bias = None if self.bias is None else self.bias.to(exact)
        scale = None if self.scale is None else self.scale.to(dtype)[:, None, None]
        shift = None if self.shift is None else self.shift.to(dtype)[:, None, None]

        def run(a: Tensor, mean_a: Tensor, *rest: Tensor) -> Any:
            x = rest[0] if concat == 1 else torch.cat(rest[:concat], 1)
            mean_x = rest[1] if concat == 1 else torch.cat(rest[concat:], 1)
            b = torch.conv2d(to_channels_last(x), kernel, bias)
            gate = torch.sigmoid_(mean_a - F.linear(mean_x.flatten(1), weight, exact_bias)[:, :, None, None])
            y = torch.lerp(b, a, gate.to(dtype))
            if scale is not None and shift is not None:
                y = torch.addcmul(shift, y, scale)
            y = activate(y, act)
            return (y, exact_mean(y, keepdim=True)) if average else y

        return run

    def __repr__(self) -> str:
        return f"[{self.weight.shape[1]}->{self.weight.shape[0]} gated sum {self.act}]"
