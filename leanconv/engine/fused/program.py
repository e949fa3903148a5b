"""A graph as a flat list of bound steps: what runs, what it reads, where its result goes, what is freed after it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from leanconv.engine.fused.forms import LAST, Run
from leanconv.engine.fused.graph import Graph, Node

Step = tuple[Run, tuple[int, ...], int, int, tuple[int, ...]]  # run, reads, writes, second or -1, frees


class Program:
    """Runs a graph. Holds no value of a call: any number of threads may be inside it at once."""

    def __init__(self, graph: Graph, runs: Mapping[Node, Run]) -> None:
        place: dict[Node, int] = {node: i for i, node in enumerate(graph.inputs)}
        for node in graph.nodes:
            place.setdefault(node, len(place))
        self._inputs = len(graph.inputs)
        self._fixed: list[Any] = [node.data if node.kind == "constant" else None for node in place][self._inputs :]
        self._outputs = [place[node] for node in graph.outputs]
        self._images = [len(node.shape) == 4 for node in graph.inputs]
        seconds = {node.inputs[0]: place[node] for node in graph.nodes if node.kind == "second"}
        last_reader = _last_readers(graph)
        self.steps: list[Step] = []
        for node in graph.nodes:
            if node.kind in ("input", "constant", "second"):
                continue
            reads = tuple(place[x] for x in node.inputs)
            frees = tuple(place[x] for x in last_reader.get(node, ()))
            self.steps.append((runs[node], reads, place[node], seconds.get(node, -1), frees))

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        values: list[Any] = [
            x.contiguous(memory_format=LAST) if image else x for x, image in zip(tensors, self._images, strict=True)
        ]
        values += self._fixed
        for run, reads, at, second, frees in self.steps:
            if second < 0:
                values[at] = run(*[values[i] for i in reads])
            else:
                values[at], values[second] = run(*[values[i] for i in reads])
            for i in frees:
                values[i] = None
        return [values[i] for i in self._outputs]


def _last_readers(graph: Graph) -> dict[Node, list[Node]]:
    """For each node the values that nobody needs once it ran. Outputs and constants stay."""
    last: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.kind == "second":
            last[node] = node.inputs[0]  # until somebody reads it
            continue
        last[node] = node
        for source in node.inputs:
            last[source] = node
    kept = {*graph.inputs, *graph.outputs, *(node for node in graph.nodes if node.kind == "constant")}
    freed: dict[Node, list[Node]] = {}
    for source, reader in last.items():
        if source not in kept:
            freed.setdefault(reader, []).append(source)
    return freed
