"""Roofline floors: the least time that a whole network could take on this machine.

The floor of a network is the sum of the floors of its fused blocks. A block's floor is the larger of flops / peak and
compulsory bytes / bandwidth: inputs read once, weights read once, the output written once. Values inside a block move
no bytes. Concatenations, slices and shuffles are free, because a kernel could read and write in place. Bandwidth is
that of memory: a block whose maps stay in a cache can be faster than its floor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.ir.graph import Graph, Node
from leanconv.engine.fused.ir.kinds.call import Call
from leanconv.engine.fused.lowering.implementations import plain_implementation
from leanconv.engine.fused.lowering.samples import sample
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.workbench import Workbench
from leanconv.measure.counting.products import MacCounter
from leanconv.measure.hardware.roofline import Peaks


@dataclass(frozen=True)
class Floor:
    """The least time of a network. `compute_ms` counts arithmetic alone; `moved` is bytes, over all blocks."""

    ms: float
    compute_ms: float
    macs: int
    moved: int

    def to_dict(self) -> dict[str, Any]:
        return {"ms": self.ms, "compute_ms": self.compute_ms, "macs": self.macs, "moved_bytes": self.moved}


def floor_of(bench: Workbench, peaks: Peaks, item: int = 4) -> Floor:
    """The floor of a workbench's model on its inputs; a number takes `item` bytes. Zeros of ours are no work."""
    return floor_of_graph(fuse(to_graph(bench.program), direct=True), peaks, item)


def floor_of_graph(graph: Graph, peaks: Peaks, item: int = 4) -> Floor:
    """The sum over the nodes of a graph after fusion."""
    total, all_macs, all_moved = 0.0, 0, 0
    for node in graph.nodes:
        if node.op.is_step and not node.op.is_free:
            macs, numbers = work(node)
            total += peaks.floor_ms(macs, item * numbers)[0]
            all_macs, all_moved = all_macs + macs, all_moved + item * numbers
    return Floor(total, peaks.floor_ms(all_macs, 0)[0], all_macs, all_moved)


def work(node: Node) -> tuple[int, int]:
    """Multiply-adds of a node, and the numbers that it must read and write."""
    return _called(node) if isinstance(node.op, Call) else node.op.work(node)


def _called(node: Node) -> tuple[int, int]:
    """The work of a call, which is run once and counted. A result that is a view moves nothing."""
    inputs = [sample(x) for x in node.inputs]
    with torch.no_grad(), MacCounter() as counter:
        made = plain_implementation(node)(*inputs)
    made = [made] if isinstance(made, Tensor) else [x for x in made if isinstance(x, Tensor)]
    storages = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
    if all(x.untyped_storage().data_ptr() in storages for x in made):
        return counter.macs, 0
    return counter.macs, sum(x.numel() for x in made) + sum(x.numbers for x in node.inputs)
