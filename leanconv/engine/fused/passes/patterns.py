"""Patterns of several nodes that mean one thing: the softmax-pair blend, activations written out, dealt channels."""

from dataclasses import replace
from typing import Any

import torch

from leanconv.engine.fused.ir.block import Block, Gated
from leanconv.engine.fused.ir.graph import Graph, Node, Ref

aten = torch.ops.aten


def _calls(node: Node, target: Any) -> bool:
    return node.kind == "call" and node.data.target is target


def _second(node: Node) -> Any:
    """The second argument of a call of two: a number, or what a size is in the captured call."""
    second = node.data.args[1]
    if isinstance(second, Ref):
        source = node.inputs[second.place]
        return source.data[0] if source.kind == "size" else None
    return second


def as_gated(graph: Graph, node: Node, users: dict[Node, list[Node]]) -> bool:
    """`lerp(b, a, sigmoid((sum a - sum b) / HW))` with b a bare 1×1 that nobody else reads: `ops.gated_sum`."""
    if not _calls(node, aten.lerp.Tensor) or len(node.shape) != 4:
        return False
    b, a, gate = node.inputs
    if gate.kind != "act" or gate.data != "sigmoid" or not _calls(share := gate.inputs[0], aten.div.Tensor):
        return False
    if _second(share) != node.shape[2] * node.shape[3] or not _calls(minus := share.inputs[0], aten.sub.Tensor):
        return False
    if [x.kind for x in minus.inputs] != ["sum", "sum"] or [x.inputs[0] for x in minus.inputs] != [a, b]:
        return False
    block = b.data
    bare = isinstance(block, Block) and len(block.stages) == 1 and block.stages[0].pointwise and not block.stages[0].act
    if not bare or block.residual or block.gate or block.act or block.parallel or block.pieces != 1:
        return False
    if set(users[b]) != {node, minus.inputs[1]}:
        return False
    x, stage = b.inputs[0], block.stages[0]
    averages = []
    for source in (a, x):
        mean = Node("average", [source], None, (*source.shape[:2], 1, 1), node.dtype, f"{source.name}.average")
        averages.append(graph.put(mean, at=node))
    node.kind, node.inputs, node.data = "gated", [a, averages[0], x, averages[1]], Gated(stage.weight, stage.bias)
    return True


def as_named_activation(graph: Graph, node: Node, users: dict[Node, list[Node]]) -> bool:
    """`x · sigmoid(x)` is SiLU, `x · hardsigmoid(x)` hardswish."""
    if not _calls(node, aten.mul.Tensor):
        return False
    for x, gate in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
        if gate.kind == "act" and gate.inputs[0] is x and gate.data in ("sigmoid", "hardsigmoid"):
            node.kind, node.inputs = "act", [x]
            node.data = {"sigmoid": "silu", "hardsigmoid": "hardswish"}[gate.data]
            return True
    return False


def as_shuffle(graph: Graph, node: Node, users: dict[Node, list[Node]]) -> bool:
    """`reshape(N, a, b, H, W)`, `transpose(1, 2)`, `reshape(N, C, H, W)`: channel i·b + j becomes channel j·a + i."""
    if not _calls(node, aten.reshape.default) or len(node.shape) != 4:
        return False
    swapped = node.inputs[0]
    if not _calls(swapped, aten.transpose.int) or sorted(d % 5 for d in swapped.data.args[1:]) != [1, 2]:
        return False
    opened = swapped.inputs[0]
    if not _calls(opened, aten.reshape.default) or len(opened.shape) != 5 or len(opened.inputs[0].shape) != 4:
        return False
    x, (n, a, b, h, w) = opened.inputs[0], opened.shape
    if x.shape != (n, a * b, h, w) or node.shape != x.shape:
        return False
    node.kind, node.inputs, node.data = "shuffle", [x], (a, b)
    return True


def as_interleaved(graph: Graph, node: Node, users: dict[Node, list[Node]]) -> bool:
    """Channels dealt to the groups of a convolution and collected again: the convolution reads them where they lie."""
    if node.kind != "shuffle" or (conv := node.inputs[0]).kind != "block" or len(users[conv]) != 1:
        return False
    block, source = conv.data, conv.inputs[0]
    if source.kind != "shuffle" or len(block.stages) != 1 or len(conv.inputs) != 1 or block.act or block.parallel:
        return False
    stage = block.stages[0]
    groups = stage.groups
    if source.data != (stage.c // groups, groups) or node.data != (groups, stage.o // groups) or stage.interleaved:
        return False
    bias = None if stage.bias is None else stage.bias.view(groups, -1).t().reshape(-1)
    node.kind, node.inputs = "block", [source.inputs[0]]
    node.data = replace(block, stages=(replace(stage, bias=bias, interleaved=True),))
    return True
