"""Exact rewriting: what stands around a convolution moves into it, chains of convolutions become one block.

Each rule looks at one node and either rewrites the graph around it (True) or leaves it (False); rules run until none
applies. A value that somebody else reads too is never absorbed.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.gates import as_dealt, as_gated, as_named_activation, as_shuffle
from leanconv.engine.fused.graph import Graph, Node
from leanconv.engine.fused.stages import Block, Gated, Linear, Stage, Upsample

Users = dict[Node, list[Node]]
Rule = Callable[[Graph, Node, Users], bool]


def rewrite(graph: Graph) -> Graph:
    """All rules, in place; returns the graph."""
    for rules in (SPELLINGS, INTO_BLOCKS, CHAINS, PIECES):
        _until_done(graph, rules)
    return graph


def _until_done(graph: Graph, rules: tuple[Rule, ...]) -> None:
    changed = True
    while changed:
        changed = False
        users = graph.users()
        for node in list(graph.nodes):
            if any(rule(graph, node, users) for rule in rules):
                changed = True
                users = graph.users()
        graph.tidy()


def only_user(node: Node, users: Users) -> bool:
    return len(users[node]) == 1


def absorb(graph: Graph, node: Node, source: Node, data: Any, inputs: list[Node] | None = None) -> bool:
    """`node` takes the place of `source` and itself: it becomes what `source` was, with `data`."""
    node.kind, node.data = source.kind, data
    node.inputs = list(source.inputs) if inputs is None else inputs
    return True


# Spellings.


def affine_of_affine(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "affine" or (source := node.inputs[0]).kind != "affine" or not only_user(source, users):
        return False
    (s1, t1), (s2, t2) = source.data, node.data
    return absorb(graph, node, source, (s1 * s2, t1 * s2 + t2))


def slice_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    """Channels of a concatenation are channels of its pieces; channels of channels likewise."""
    if node.kind != "slice":
        return False
    source, (start, stop) = node.inputs[0], node.data
    if (start, stop) == (0, source.channels):
        graph.replace(node, source)
        return bool(users[node])
    if source.kind == "slice":
        node.inputs, node.data = source.inputs, (start + source.data[0], stop + source.data[0])
        return True
    if source.kind != "cat":
        return False
    pieces, at = [], 0
    for piece in source.inputs:
        low, high = max(start - at, 0), min(stop - at, piece.channels)
        if low < high:
            pieces.append(piece if (low, high) == (0, piece.channels) else graph.put(_slice(piece, low, high), at=node))
        at += piece.channels
    if len(pieces) == 1:
        graph.replace(node, pieces[0])
    else:
        node.kind, node.inputs, node.data = "cat", pieces, None
    return True


def _slice(x: Node, start: int, stop: int) -> Node:
    shape = (x.shape[0], stop - start, *x.shape[2:])
    return Node("slice", [x], (start, stop), shape, x.dtype, f"{x.name}[{start}:{stop}]")


def cat_of_cat(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "cat" or not any(x.kind == "cat" for x in node.inputs):
        return False
    node.inputs = [y for x in node.inputs for y in (x.inputs if x.kind == "cat" else [x])]
    return True


def average_of_pieces(graph: Graph, node: Node, users: Users) -> bool:
    """The average of a concatenation is put together from its pieces', of a slice it is a slice."""
    if node.kind != "average" or (source := node.inputs[0]).kind not in ("cat", "slice"):
        return False
    made = []
    for piece in source.inputs:
        shared = next((u for u in users[piece] if u is not None and u.kind == "average"), None)
        if shared is None or graph.nodes.index(shared) > graph.nodes.index(node):
            shared = Node("average", [piece], None, (*piece.shape[:2], 1, 1), node.dtype, f"{piece.name}.average")
            graph.put(shared, at=node)
        made.append(shared)
    node.kind, node.inputs, node.data = source.kind, made, source.data
    return True


# Into blocks.


def _scaled(stage: Stage, scale: Tensor, shift: Tensor) -> Stage:
    bias = shift if stage.bias is None else stage.bias * scale + shift
    filters = scale.view(-1, stage.groups).t().reshape(-1) if stage.dealt else scale
    return replace(stage, weight=stage.weight * filters.view(-1, 1, 1, 1), bias=bias)


def affine_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "affine" or not only_user(source := node.inputs[0], users):
        return False
    scale, shift = node.data
    match source.data:
        case Block(stages=stages, residual=False, act="") if not stages[-1].act:
            beside = source.data.beside and _scaled(source.data.beside, scale, torch.zeros_like(shift))
            made: Any = replace(
                source.data,
                stages=(*stages[:-1], _scaled(stages[-1], scale, shift)),
                beside=beside and replace(beside, bias=None),
            )
        case Gated(act="") as gated:
            old_scale = torch.ones_like(scale) if gated.scale is None else gated.scale
            old_shift = torch.zeros_like(shift) if gated.shift is None else gated.shift
            made = replace(gated, scale=old_scale * scale, shift=old_shift * scale + shift)
        case Upsample(act="") as up:
            bias = shift if up.bias is None else up.bias * scale + shift
            made = replace(up, weight=up.weight * scale.view(1, -1, 1, 1), bias=bias)
        case _:
            return False
    return absorb(graph, node, source, made)


def affine_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """BatchNorm before a convolution without padding, where nothing before it could take it."""
    if node.kind != "block" or node.data.gate or node.data.beside or node.data.pieces != 1:
        return False
    source, stage = node.inputs[0], node.data.stages[0]
    if source.kind != "affine" or not only_user(source, users) or any(stage.sides) or stage.dealt:
        return False
    scale, shift = source.data
    per_group = stage.c // stage.groups, stage.o // stage.groups
    index = torch.arange(stage.o) // per_group[1] * per_group[0]
    columns = index[:, None] + torch.arange(per_group[0])  # O C/G: the input channel of each weight
    weight = stage.weight * scale[columns][:, :, None, None]
    bias = (stage.weight * shift[columns][:, :, None, None]).sum((1, 2, 3))
    bias = bias if stage.bias is None else bias + stage.bias
    node.data = replace(node.data, stages=(replace(stage, weight=weight, bias=bias), *node.data.stages[1:]))
    node.inputs = [source.inputs[0], *node.inputs[1:]]
    return True


def act_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "act" or not only_user(source := node.inputs[0], users):
        return False
    match source.data:
        case Block(act="", residual=True) as block:
            made: Any = replace(block, act=node.data)
        case Block(act="", stages=stages) as block if not stages[-1].act:
            made = replace(block, stages=(*stages[:-1], replace(stages[-1], act=node.data)))
        case Gated(act="") | Upsample(act="") | Linear(act=""):
            made = replace(source.data, act=node.data)
        case _:
            return False
    return absorb(graph, node, source, made)


def pad_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "block" or node.inputs[0].kind != "pad" or node.data.pieces != 1 or node.data.beside:
        return False
    source, stage = node.inputs[0], node.data.stages[0]
    sides = tuple(a + b for a, b in zip(stage.sides, source.data, strict=True))
    node.data = replace(node.data, stages=(replace(stage, sides=sides), *node.data.stages[1:]))
    node.inputs = [source.inputs[0], *node.inputs[1:]]
    return True


def add_into_block(graph: Graph, node: Node, users: Users) -> bool:
    """A sum: the later of its two parts that is a block's own takes the other as its residual."""
    if node.kind != "add" or node.inputs[0] is node.inputs[1]:
        return False
    place = {x: i for i, x in enumerate(graph.nodes)}
    for source in sorted(node.inputs, key=lambda x: -place[x]):
        other = node.inputs[1 - node.inputs.index(source)]
        block = source.data
        if source.kind != "block" or not only_user(source, users) or block.residual or block.act or block.beside:
            continue
        inputs = [*source.inputs[: block.pieces], other, *source.inputs[block.pieces :]]
        return absorb(graph, node, source, replace(block, residual=True), inputs)
    return False


def beside_into_block(graph: Graph, node: Node, users: Users) -> bool:
    """A k×k convolution and a 1×1 of the same map, added: one pass over it."""
    if node.kind != "add" or not all(x.kind == "block" and only_user(x, users) for x in node.inputs):
        return False
    spatial, plain = sorted(node.inputs, key=lambda x: x.data.stages[0].pointwise)
    if spatial.inputs != plain.inputs or not all(_bare(x.data) for x in node.inputs):
        return False
    if spatial.data.stages[0].pointwise or not plain.data.stages[0].pointwise:
        return False
    stage, other = spatial.data.stages[0], plain.data.stages[0]
    if stage.depthwise or stage.stride != (1, 1):
        return False
    biases = [b for b in (stage.bias, other.bias) if b is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    block = replace(spatial.data, stages=(replace(stage, bias=bias),), beside=replace(other, bias=None))
    return absorb(graph, node, spatial, block)


def _bare(block: Block) -> bool:
    """One convolution and nothing else."""
    extra = block.residual or block.gate or block.act or block.beside
    return len(block.stages) == 1 and not extra and not block.stages[0].act


def scale_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """Squeeze-and-excite: a 1×1 reads its input times a gate per sample and channel."""
    if node.kind != "block" or node.data.gate or node.data.pieces != 1 or len(node.data.stages) != 1:
        return False
    source = node.inputs[0]
    if source.kind != "scale" or not node.data.stages[0].pointwise or not only_user(source, users):
        return False
    node.inputs = [source.inputs[0], *node.inputs[1:], source.inputs[1]]
    node.data = replace(node.data, gate=True)
    return True


# Chains.


def chain(graph: Graph, node: Node, users: Users) -> bool:
    """Depthwise stencils, one after another, then a 1×1; a group convolution, then a 1×1."""
    if node.kind != "block" or node.data.pieces != 1 or node.data.beside or node.data.gate:
        return False
    source = node.inputs[0]
    if source.kind != "block" or not only_user(source, users):
        return False
    first, second = source.data, node.data
    if first.residual or first.act or first.beside or first.gate or source in node.inputs[1:]:
        return False
    grouped = len(first.stages) == 1 and first.stages[0].groups > 1 and second.stages[0].pointwise
    stencils = all(stage.depthwise for stage in first.stages)
    if not grouped and not (stencils and (second.stages[0].depthwise or second.stages[0].pointwise)):
        return False
    block = replace(second, stages=(*first.stages, *second.stages), pieces=first.pieces)
    node.inputs = [*source.inputs, *node.inputs[1:]]
    node.data = block
    return True


# Pieces.


def cat_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """A block reads the pieces of a concatenation where they lie."""
    if node.kind not in ("block", "gated"):
        return False
    first = 3 if node.kind == "gated" else 0
    source = node.inputs[first] if len(node.inputs) > first else node
    if node.data.pieces != 1 or source.kind != "cat":
        return False
    node.inputs = [*node.inputs[:first], *source.inputs, *node.inputs[first + 1 :]]
    node.data = replace(node.data, pieces=len(source.inputs))
    return True


# Averages.


def average_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    """What writes a map also sums it up: the average is its second result."""
    if node.kind != "average" or (source := node.inputs[0]).kind not in ("block", "gated"):
        return False
    if source.data.average:
        twin = next(u for u in users[source] if u is not None and u.kind == "second")
        graph.replace(node, twin)
        return bool(users[node])
    source.data = replace(source.data, average=True)
    node.kind = "second"
    return True


SPELLINGS: tuple[Rule, ...] = (
    as_gated, as_named_activation, as_shuffle, as_dealt, affine_of_affine, slice_of_cat, cat_of_cat, average_of_pieces,
)  # fmt: skip
INTO_BLOCKS: tuple[Rule, ...] = (
    affine_of_affine, affine_into_producer, act_into_producer, pad_into_consumer, beside_into_block, add_into_block,
    scale_into_consumer,
)  # fmt: skip
CHAINS: tuple[Rule, ...] = (chain, affine_into_consumer, affine_into_producer, act_into_producer)
PIECES: tuple[Rule, ...] = (cat_into_consumer, average_into_producer)
