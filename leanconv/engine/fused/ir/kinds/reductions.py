"""Reductions of a map over height and width: `N C H W -> N C 1 1`, in float32 where the map is bfloat16."""

from dataclasses import dataclass
from functools import partial

from leanconv.engine.fused.ir.graph import Node, Run, TorchOp
from leanconv.ops.exact import exact_mean


@dataclass(frozen=True)
class Average(TorchOp):
    in_float32 = True

    def in_torch(self, node: Node) -> Run:
        return partial(exact_mean, keepdim=True)


@dataclass(frozen=True)
class Sum(TorchOp):
    in_float32 = True

    def in_torch(self, node: Node) -> Run:
        return lambda x: x.sum((2, 3), keepdim=True, dtype=node.dtype)
