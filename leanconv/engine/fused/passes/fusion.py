"""Exact rewriting: what stands around a convolution moves into it, chains of convolutions become one block.

The rules, and their order (how they are applied: rules.py). A value that somebody else reads too is never absorbed.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.block import Block, Gated, Linear, Slices, Stage, Upsample, bare
from leanconv.engine.fused.ir.graph import Call, Graph, Node, Ref, Users, only_user
from leanconv.engine.fused.passes.concat import (
    average_into_producer,
    average_of_pieces,
    cat_into_consumer,
    cat_of_cat,
    side_by_side,
    slice_of_cat,
)
from leanconv.engine.fused.passes.patterns import as_gated, as_interleaved, as_named_activation, as_shuffle, aten
from leanconv.engine.fused.passes.rules import Rule, until_done
from leanconv.ops.fold import scaled_bias, scaled_weight


def rewrite(graph: Graph) -> Graph:
    """All rules, in place; returns the graph."""
    for rules in (SPELLINGS, INTO_BLOCKS, CHAINS, (affine_as_stencil,), LEFT_OVER, PIECES):
        until_done(graph, rules)
    return graph


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
    return absorb(graph, node, source, (s1 * s2, scaled_bias(t1, s2, t2)))


# Into blocks.


def _scaled(stage: Any, scale: Tensor, shift: Tensor) -> Any:
    bias = scaled_bias(stage.bias, scale, shift)
    filters = scale.view(-1, stage.groups).t().reshape(-1) if stage.interleaved else scale
    return replace(stage, weight=scaled_weight(stage.weight, filters), bias=bias)


def affine_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "affine" or not only_user(source := node.inputs[0], users):
        return False
    scale, shift = node.data
    match source.data:
        case Block(stages=(*_, Slices())):
            return False
        case Block(stages=stages, residual=False, act="") if not stages[-1].act:
            parallel = source.data.parallel and replace(_scaled(source.data.parallel, scale, shift), bias=None)
            made: Any = replace(
                source.data, stages=(*stages[:-1], _scaled(stages[-1], scale, shift)), parallel=parallel
            )
        case Gated(act="") as gated:
            old_scale = torch.ones_like(scale) if gated.scale is None else gated.scale
            made = replace(gated, scale=old_scale * scale, shift=scaled_bias(gated.shift, scale, shift))
        case Upsample(act="") as up:
            weight = scaled_weight(up.weight, scale, transposed=True)
            made = replace(up, weight=weight, bias=scaled_bias(up.bias, scale, shift))
        case _:
            return False
    return absorb(graph, node, source, made)


def affine_over_sum(graph: Graph, node: Node, users: Users) -> bool:
    """BatchNorm after the sum of two convolutions: one of them takes scale and shift, the other the scale."""
    if node.kind != "affine" or (add := node.inputs[0]).kind != "add" or not only_user(add, users):
        return False
    if not all(x.kind == "block" and only_user(x, users) and bare(x.data) for x in add.inputs):
        return False
    if add.inputs[0] is add.inputs[1] or any(isinstance(x.data.stages[0], Slices) for x in add.inputs):
        return False
    scale, shift = node.data
    for source, part in zip(add.inputs, (shift, torch.zeros_like(shift)), strict=True):
        source.data = replace(source.data, stages=(_scaled(source.data.stages[0], scale, part),))
    return absorb(graph, node, add, None)


def affine_as_stencil(graph: Graph, node: Node, users: Users) -> bool:
    """What is left of BatchNorm: a depthwise 1×1, which takes the activation behind it and joins a chain."""
    if node.kind != "affine" or len(node.shape) != 4 or node.shape[2:] == (1, 1):
        return False
    scale, shift = node.data
    node.kind = "block"
    node.data = Block((Stage(scale.view(-1, 1, 1, 1).clone(), shift, groups=node.channels),))
    return True


def affine_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """BatchNorm before a convolution without padding, where nothing before it could take it."""
    if node.kind != "block" or node.data.gate or node.data.parallel or node.data.pieces != 1:
        return False
    source, stage = node.inputs[0], node.data.stages[0]
    if (
        isinstance(stage, Slices)
        or source.kind != "affine"
        or not only_user(source, users)
        or any(stage.sides)
        or stage.interleaved
    ):
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
        case Block(act="", stages=(*_, Slices())) | Block(act="", residual=True) as block:
            made: Any = replace(block, act=node.data)
        case Block(act="", stages=stages) as block if not stages[-1].act:
            made = replace(block, stages=(*stages[:-1], replace(stages[-1], act=node.data)))
        case Gated(act="") | Upsample(act="") | Linear(act=""):
            made = replace(source.data, act=node.data)
        case _:
            return False
    return absorb(graph, node, source, made)


def pad_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    if node.kind != "block" or node.inputs[0].kind != "pad" or node.data.pieces != 1 or node.data.parallel:
        return False
    source, stage = node.inputs[0], node.data.stages[0]
    if isinstance(stage, Slices):
        return False
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
        if source.kind != "block" or not only_user(source, users) or block.residual or block.act or block.parallel:
            continue
        inputs = [*source.inputs[: block.pieces], other, *source.inputs[block.pieces :]]
        return absorb(graph, node, source, replace(block, residual=True), inputs)
    return False


def beside_into_block(graph: Graph, node: Node, users: Users) -> bool:
    """A k×k convolution and a 1×1 of the same map, added: one pass over it."""
    if node.kind != "add" or not all(x.kind == "block" and only_user(x, users) for x in node.inputs):
        return False
    spatial, plain = sorted(node.inputs, key=lambda x: x.data.stages[0].pointwise)
    if spatial.inputs != plain.inputs or not all(bare(x.data) for x in node.inputs):
        return False
    if spatial.data.stages[0].pointwise or not plain.data.stages[0].pointwise:
        return False
    stage, other = spatial.data.stages[0], plain.data.stages[0]
    if stage.depthwise or stage.stride != (1, 1):
        return False
    biases = [b for b in (stage.bias, other.bias) if b is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    block = replace(spatial.data, stages=(replace(stage, bias=bias),), parallel=replace(other, bias=None))
    return absorb(graph, node, spatial, block)


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
    if node.kind != "block" or node.data.pieces != 1 or node.data.parallel or node.data.gate:
        return False
    source = node.inputs[0]
    if source.kind != "block" or not only_user(source, users):
        return False
    first, second = source.data, node.data
    if first.residual or first.act or first.parallel or first.gate or source in node.inputs[1:]:
        return False
    grouped = len(first.stages) == 1 and first.stages[0].groups > 1 and second.stages[0].pointwise
    stencils = all(stage.depthwise or isinstance(stage, Slices) for stage in first.stages)
    if not grouped and not (stencils and (second.stages[0].depthwise or second.stages[0].pointwise)):
        return False
    if node.data.gate and len(node.data.stages) > 1:
        return False
    block = replace(second, stages=(*first.stages, *second.stages), pieces=first.pieces)
    node.inputs = [*source.inputs, *node.inputs[1:]]
    node.data = block
    return True


SPELLINGS: tuple[Rule, ...] = (
    as_gated, as_named_activation, as_shuffle, as_interleaved, affine_of_affine, affine_over_sum, slice_of_cat,
    cat_of_cat, average_of_pieces,
)  # fmt: skip
INTO_BLOCKS: tuple[Rule, ...] = (
    affine_of_affine, affine_into_producer, act_into_producer, pad_into_consumer, beside_into_block, add_into_block,
    scale_into_consumer,
)  # fmt: skip
CHAINS: tuple[Rule, ...] = (side_by_side, chain, affine_into_consumer, affine_into_producer, act_into_producer)


def linear_as_product(graph: Graph, node: Node, users: Users) -> bool:
    """A linear layer: a 1×1 on a map of one pixel (a global average's, or `N C` seen as one), then the view `N C`."""
    if node.kind != "linear":
        return False
    source, linear, flat = node.inputs[0], node.data, Call(aten.flatten.using_ints, (Ref(0), 1))
    if source.kind == "call" and source.data.target is flat.target and source.inputs[0].shape[2:] == (1, 1):
        source = source.inputs[0]
    else:
        size = (*source.shape, 1, 1)
        view = Call(aten.unflatten.int, (Ref(0), 1, size[1:]))
        source = graph.put(Node("call", [source], view, size, source.dtype, f"{source.name}.map"), at=node)
    bias = None if linear.bias is None else linear.bias.double()
    stage = Stage(linear.weight.double()[:, :, None, None], bias, act=linear.act)
    made = Node("block", [source], Block((stage,)), (*node.shape, 1, 1), node.dtype, f"{node.name}.product")
    graph.put(made, at=node)
    node.kind, node.inputs, node.data = "call", [made], flat
    return True


LEFT_OVER: tuple[Rule, ...] = (act_into_producer, chain, linear_as_product)
PIECES: tuple[Rule, ...] = (cat_into_consumer, average_into_producer)
