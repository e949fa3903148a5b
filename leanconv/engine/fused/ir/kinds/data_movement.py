"""Data movement: ops that place channels and pixels and compute nothing."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node, Run, TorchOp
from leanconv.ops.forms import Sides


@dataclass(frozen=True)
class Cat(TorchOp):
    """The concatenation over channels."""

    is_free = any_operand_decides = True

    def in_torch(self, node: Node) -> Run:
        return lambda *maps: torch.cat(maps, 1)


@dataclass(frozen=True)
class Slice(TorchOp):
    """Channels `start` to `stop`."""

    start: int
    stop: int
    is_free = may_alias = True

    def in_torch(self, node: Node) -> Run:
        start, length = self.start, self.stop - self.start
        return lambda x: x.narrow(1, start, length)


@dataclass(frozen=True)
class Shuffle(TorchOp):
    """Channel i·b + j becomes channel j·a + i."""

    a: int
    b: int
    is_free = may_alias = True

    def in_torch(self, node: Node) -> Run:
        return lambda x: channel_shuffle(x, self.b)


@dataclass(frozen=True)
class Pad(TorchOp):
    """Zeros around a map."""

    padding: Sides

    def in_torch(self, node: Node) -> Run:
        top, bottom, left, right = self.padding
        return lambda x: F.pad(x, (left, right, top, bottom))


def channel_shuffle(x: Tensor, b: int) -> Tensor:
    """Channel i·b + j becomes channel j·a + i, in channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w, c // b, b).transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
