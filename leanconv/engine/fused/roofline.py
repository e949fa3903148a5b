"""Roofline floors: the least time that a whole network could take on this machine.

The floor of a network is the sum of its blocks' floors, each the larger of flops / peak and compulsory bytes /
bandwidth: inputs read once, weights read once, the output written once. A block is what the fused engine's rewriting
leaves (a chain of convolutions with all that stands around them), so that nothing inside one counts as moved;
concatenations, slices and shuffles are free, as a kernel may read and write in place. Bandwidth is memory's: blocks
whose maps stay in a cache can be faster than their floor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.ir.block import Block, Gated, Linear, Slices, Stage, Upsample
from leanconv.engine.fused.ir.graph import UNRUN, Graph, Node
from leanconv.engine.fused.lowering.autotune import sample
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.fused.passes.fusion import rewrite
from leanconv.engine.workbench import Workbench
from leanconv.measure.counting.products import MacCounter
from leanconv.measure.hardware.roofline import Peaks

# Nothing is computed, and nothing need be moved.
FREE = UNRUN | {"cat", "slice", "shuffle"}


@dataclass(frozen=True)
class Floor:
    """The least time of a network. `compute_ms`: of its arithmetic alone; `moved`: bytes, over all blocks."""

    ms: float
    compute_ms: float
    macs: int
    moved: int

    def to_dict(self) -> dict[str, Any]:
        return {"ms": self.ms, "compute_ms": self.compute_ms, "macs": self.macs, "moved_bytes": self.moved}


def floor_of(bench: Workbench, peaks: Peaks, item: int = 4) -> Floor:
    """The floor of a workbench's model on its inputs, numbers of `item` bytes."""
    return floor_of_graph(rewrite(to_graph(bench.program)), peaks, item)


def floor_of_graph(graph: Graph, peaks: Peaks, item: int = 4) -> Floor:
    """The sum over the nodes of a rewritten graph."""
    total, all_macs, all_moved = 0.0, 0, 0
    for node in graph.nodes:
        if node.kind not in FREE:
            macs, numbers = work(node)
            total += peaks.floor_ms(macs, item * numbers)[0]
            all_macs, all_moved = all_macs + macs, all_moved + item * numbers
    return Floor(total, peaks.floor_ms(all_macs, 0)[0], all_macs, all_moved)


def work(node: Node) -> tuple[int, int]:
    """Multiply-adds of a node, and the numbers that it must read and write."""
    if node.kind == "call":
        return _called(node)
    sources = list(dict.fromkeys(node.inputs))
    numbers = sum(map(_numbers, sources)) + _numbers(node)
    pixels = node.shape[0] * node.shape[-1] * node.shape[-2]
    match node.data:
        case Block() as block:
            macs, weights, skipped = _block(node, block)
            return macs, numbers + weights - skipped
        case Upsample(weight=weight):  # four outputs of each input pixel, each by its own matrix
            return pixels // 4 * weight.numel(), numbers + weight.numel()
        case Gated(weight=weight):
            return pixels * weight.numel(), numbers + weight.numel()
        case Linear(weight=weight):
            return node.shape[0] * weight.numel(), numbers + weight.numel()
    return 0, numbers


def _block(node: Node, block: Block) -> tuple[int, int, int]:
    """Multiply-adds and weights of a chain, and the numbers of its input that strides leap over."""
    n, _, h, w = node.inputs[0].shape
    macs = weights = skipped = 0
    for i, stage in enumerate(block.stages):
        rows, columns = stage.size(h, w)
        parts = [part for _, _, part in stage.parts if part] if isinstance(stage, Slices) else [stage]
        parts += [block.parallel] if i == 0 and block.parallel else []
        own = sum(part.weight.numel() for part in parts)
        if i == 0 and block.parallel:  # a 1x1 beside a grouped one need not read the group's own channels again
            own -= block.parallel.weight.numel() // parts[0].groups
        macs, weights = macs + n * rows * columns * own, weights + own
        if i == 0 and isinstance(stage, Stage) and not block.residual:
            read = min(h, rows * stage.taps[0]) * min(w, columns * stage.taps[1])
            skipped = n * stage.c * (h * w - read)
        h, w = rows, columns
    return macs, weights, skipped


def _called(node: Node) -> tuple[int, int]:
    """Any other operator, run once: what it multiplies, and nothing moved where the result is a view."""
    inputs = [sample(x) for x in node.inputs]
    with torch.no_grad(), MacCounter() as counter:
        made = IMPLEMENTATIONS["call"][0].make(node)(*inputs)  # type: ignore[misc]
    made = [made] if isinstance(made, Tensor) else [x for x in made if isinstance(x, Tensor)]
    storages = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
    if all(x.untyped_storage().data_ptr() in storages for x in made):
        return counter.macs, 0
    return counter.macs, sum(x.numel() for x in made) + sum(map(_numbers, node.inputs))


def _numbers(node: Node) -> int:
    """Elements of a node's value; maps of one pixel cost nothing to speak of, but count."""
    return torch.Size(node.shape).numel()
