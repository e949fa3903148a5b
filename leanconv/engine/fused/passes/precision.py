"""Half precision: which values of a graph are kept in bfloat16, and the casts where two kinds meet."""

import torch

from leanconv.engine.fused.ir.graph import Graph, Node, constant


def keep_in(graph: Graph, dtype: torch.dtype) -> Graph:
    """Every float32 map in `dtype`, in place; returns the graph.

    Averages and sums over maps are computed and kept in float32, and so is what is made of them alone (the gates of
    squeeze-and-excite, a classifier): it costs nothing there. An operator of PyTorch that reads a map reads all in
    `dtype`, and its result is brought to it.
    """
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node in list(graph.nodes):
        if node.dtype != torch.float32 or node.kind in ("constant", "average", "sum", "second"):
            continue
        if node.kind == "input":
            node.dtype = dtype if len(node.shape) == 4 else node.dtype
            continue
        leading = node.inputs if node.kind in ("call", "cat", "add") else node.inputs[:1]
        if not any(x.dtype == dtype for x in leading):
            continue
        node.dtype = dtype
        for index, wanted in enumerate(_operands(node)):
            source = node.inputs[index]
            if source.dtype != wanted and source.dtype in (torch.float32, dtype):
                node.inputs[index] = _cast(graph, node, source, wanted, casts)
    return graph


def _operands(node: Node) -> list[torch.dtype]:
    """The dtype that each input must have: gates and averages float32, all else the node's own."""
    own, count = [node.dtype], len(node.inputs)
    vector = [torch.float32]
    match node.kind:
        case "gated":
            pieces = node.data.pieces
            return own + vector + own * pieces + vector * pieces
        case "block":
            return own * (count - node.data.gate) + vector * node.data.gate
        case "scale":
            return own + vector
    return own * count


def _cast(
    graph: Graph, at: Node, source: Node, dtype: torch.dtype, casts: dict[tuple[Node, torch.dtype], Node]
) -> Node:
    """`source` in `dtype`: made once, before the first node that reads it so."""
    if (source, dtype) not in casts:
        if source.kind == "constant":
            made = constant(source.data.to(dtype), source.name)
        else:
            made = Node("cast", [source], dtype, source.shape, dtype, f"{source.name}.cast")
        casts[source, dtype] = graph.put(made, at=at)
    return casts[source, dtype]
