"""Which layer each step of a fused program belongs to, so that a step's time can be put to its layer's account.

A step computes the program's operators between its inputs and itself. The program says which module called each.
A step with convolutions belongs to their layers, in proportion to their multiply-accumulates. One without belongs to
the layer inside which it stands (a gate of an operator), else, if it is elementwise, to the layer whose result it reads
(a BatchNorm or an activation that this layer's kernel could not take in). Pooling, padding and the like, which no swap
changes, belong to nobody, and so do layers that no candidate swaps: their noise is then no layer's gain.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from leanconv.engine.fused.capture.export import decomposed
from leanconv.engine.fused.ir.graph import Graph, Node, origin

NOBODY = ""
_PREFIX = "model"  # the attribute of `deploy.calls.FlatModel` that holds the network


def owners(program: ExportedProgram, graph: Graph, layers: Sequence[str]) -> dict[Node, dict[str, float]]:
    """For each node of the fused graph, the layers it computes for and their shares, which add up to 1.

    Args:
        program: what `graph` was read from.
        layers: names of the layers in the network; a module inside one belongs to it.
    """
    calls = {node.name: node for node in decomposed(program).graph.nodes}
    names, found = set(layers), dict[Node, dict[str, float]]()
    for node in graph.nodes:
        covered = _covered(calls, node)
        macs: dict[str, float] = {}
        inside: list[str] = []
        for each in covered:
            layer = _layer(each, names)
            if count := _macs(each):
                macs[layer] = macs.get(layer, 0.0) + count
            elif layer:
                inside.append(layer)
        total = sum(macs.values())
        if total:
            found[node] = {layer: count / total for layer, count in macs.items()}
        elif inside:
            found[node] = {layer: inside.count(layer) / len(inside) for layer in dict.fromkeys(inside)}
        elif any(map(_is_elementwise, covered)):
            found[node] = next((found[x] for x in node.inputs if x in found), {NOBODY: 1.0})
        else:
            found[node] = {NOBODY: 1.0}
    return found


def _covered(calls: Mapping[str, fx.Node], node: Node) -> list[fx.Node]:
    """The program's operators that the node computes: those between its inputs and itself."""
    start, stop = calls.get(origin(node)), {origin(x) for x in node.inputs}
    if start is None or start.op != "call_function" or start.name in stop:
        return []
    waiting, seen = [start], {start}
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in seen and source.name not in stop and source.op == "call_function":
                seen.add(source)
                waiting.append(source)
    return list(seen)


def _layer(node: fx.Node, names: set[str]) -> str:
    """The layer that called an operator, NOBODY if none of `names` did."""
    for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
        parts = str(path).split(".")
        parts = parts[1:] if parts[0] == _PREFIX else parts
        for length in range(len(parts), 0, -1):
            if (name := ".".join(parts[:length])) in names:
                return name
    return NOBODY


def _is_elementwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or "batch_norm" in str(node.target)


def _macs(node: fx.Node) -> float:
    """Multiply-accumulates of a convolution, a matrix product or a linear layer; 0 of all else."""
    name = str(node.target)
    made: Any = node.meta.get("val")
    if not isinstance(made, Tensor) or len(node.all_input_nodes) < 2:
        return 0.0
    sizes = [tuple(x.meta["val"].shape) for x in node.all_input_nodes if isinstance(x.meta.get("val"), Tensor)]
    if "convolution" in name or "conv2d" in name or "conv_transpose" in name:
        weight = sizes[1]
        positions = math.prod(map(int, (sizes[0] if "transpose" in name else made.shape)[2:])) * int(made.shape[0])
        return float(positions * math.prod(map(int, weight)))
    if any(word in name for word in ("linear", "addmm", "bmm", ".mm.", "matmul")):
        return float(math.prod(map(int, made.shape)) * int(sizes[-2][-1] if "addmm" in name else sizes[0][-1]))
    return 0.0
