"""Which blocks are faster in integers, with the conversions around them: measured, not assumed."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass

import torch

from leanconv.engine.fused.ir.graph import Graph, Node
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.passes.quantization import Quantizer

SWEEPS = 3  # over all blocks; after the second one hardly a block changes


@dataclass(frozen=True)
class Times:
    """Measured milliseconds by nodes of the float graph.

    Attributes:
        wide, narrow: of each node in float32, and of its integer kernel; infinite where there is none.
        conversion: of one number between float32 and uint8.
    """

    wide: Mapping[Node, float]
    narrow: Mapping[Node, float]
    conversion: float

    def of(self, graph: Graph, made: Mapping[Node, Node]) -> float:
        """The sum over a rewritten graph. `made`: the new node of each old one."""
        total, there = 0.0, {*graph.nodes}
        for old, new in made.items():
            if new in there and new.op.is_step:
                total += (self.narrow if isinstance(new.op, Integer) else self.wide).get(old, 0.0)
        for node in graph.nodes:
            if isinstance(node.op, Quantize | Dequantize):
                total += self.conversion * node.numbers
            elif isinstance(node.op, Integer):  # it quantizes what it reads in float32
                read = [x for x in node.op.maps(node.inputs) if x is not None and x.dtype == torch.float32]
                total += self.conversion * sum(x.numbers for x in read)
        return total


def faster_in_integers(quantizer: Quantizer, times: Times, allowed: Set[Node]) -> set[Node]:
    """The nodes among `allowed` that compute in integers where the whole graph takes the least time.

    It starts with all that have a kernel, and with those whose kernel is faster by itself. From both, single blocks
    change sides while the sum of measured times falls.
    """
    able = {node for node in allowed if times.narrow.get(node, math.inf) < math.inf}
    quicker = {node for node in able if times.narrow[node] <= times.wide.get(node, 0.0)}
    found = [_descended(quicker if start else able, able, quantizer, times) for start in range(2)]
    _, best = min((*found, (times.of(*quantizer.rewrite(set())), set[Node]())), key=lambda each: each[0])
    return best


def _descended(chosen: set[Node], able: Set[Node], quantizer: Quantizer, times: Times) -> tuple[float, set[Node]]:
    least = times.of(*quantizer.rewrite(chosen))
    for _ in range(SWEEPS):
        before = least
        for node in [node for node in quantizer.nodes if node in able]:
            other = chosen ^ {node}
            if (ms := times.of(*quantizer.rewrite(other))) < least:
                chosen, least = other, ms
        if least == before:
            break
    return least, chosen
