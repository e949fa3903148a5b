"""Precision: which values of a graph are stored in bfloat16, and the casts where two dtypes meet."""

import torch

from leanconv.engine.fused.ir.graph import Graph, Node
from leanconv.engine.fused.ir.kinds.elementwise import Cast
from leanconv.engine.fused.ir.kinds.values import Constant, Input, constant


def lower_precision(graph: Graph, dtype: torch.dtype) -> Graph:
    """Store every float32 map in `dtype`, in place; returns the graph.

    Averages and sums over maps stay float32, and so does what is computed from them alone: the gates of
    squeeze-and-excite, a classifier. It costs nothing there. An operator of PyTorch that reads a map reads all inputs
    in `dtype`, and its result is cast to it.
    """
    casts: dict[tuple[Node, torch.dtype], Node] = {}
    for node in list(graph.nodes):
        if node.dtype != torch.float32 or node.op.in_float32:
            continue
        if isinstance(node.op, Input):
            node.dtype = dtype if len(node.shape) == 4 else node.dtype
            continue
        deciding = node.inputs if node.op.any_operand_decides else node.inputs[:1]
        if not any(x.dtype == dtype for x in deciding):
            continue
        node.dtype = dtype
        for index, wanted in enumerate(node.op.operand_dtypes(node)):
            source = node.inputs[index]
            if source.dtype != wanted and source.dtype in (torch.float32, dtype):
                node.inputs[index] = _cast(graph, node, source, wanted, casts)
    return graph


def _cast(
    graph: Graph, at: Node, source: Node, dtype: torch.dtype, casts: dict[tuple[Node, torch.dtype], Node]
) -> Node:
    """`source` in `dtype`: one cast for all readers, before the first of them."""
    if (source, dtype) not in casts:
        if isinstance(source.op, Constant):
            made = constant(source.op.value.to(dtype), source.name)
        else:
            made = Node(Cast(), [source], source.shape, dtype, f"{source.name}.cast")
        casts[source, dtype] = graph.put(made, at=at)
    return casts[source, dtype]
