"""Max-pooling of a map, with the average of its result where that is wanted too."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node, Primitive, Run, TorchOp
from leanconv.kernels import to_channels_last
from leanconv.ops import pool as primitives
from leanconv.ops.exact import exact_mean
from leanconv.ops.forms import Pair, Sides


@dataclass(frozen=True, repr=False)
class MaxPool(TorchOp):
    kernel: Pair
    stride: Pair
    padding: Sides
    average: bool = False  # a second result: the average over height and width, `N C 1 1`

    def primitive(self, node: Node) -> Primitive:
        return primitives.MaxPool(node.channels, self.kernel, self.stride, self.padding, self.average), []

    def in_torch(self, node: Node) -> Run:
        top, _, left, _ = self.padding
        kernel, stride, padding, average = self.kernel, self.stride, (top, left), self.average

        def run(x: Tensor) -> Any:
            y = torch.max_pool2d(to_channels_last(x), kernel, stride, padding)
            return (y, exact_mean(y, keepdim=True)) if average else y

        return run

    def __repr__(self) -> str:
        return f"[max pool {'x'.join(map(str, self.kernel))}/{self.stride[0]}]"
