"""Operator fusion, exact: affine, activation, pad and residual move into blocks, and blocks become chains.

This file lists the rules and their order; rules.py applies them. A value with another reader is never absorbed.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Graph, Node, Op, Users, only_user
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.call import Call, Ref
from leanconv.engine.fused.ir.kinds.data_movement import Pad
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add, Affine, Scale
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.linear import Linear
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.ir.stages import Branch, Branches, Stage
from leanconv.engine.fused.passes.concat import (
    average_into_producer,
    average_of_cat,
    cat_into_branches,
    cat_into_consumer,
    cat_of_cat,
    slice_of_cat,
)
from leanconv.engine.fused.passes.patterns import (
    as_gated_sum,
    as_interleaved,
    as_named_activation,
    as_product,
    as_shuffle,
    aten,
)
from leanconv.engine.fused.passes.rules import Rule, run_to_fixpoint
from leanconv.ops.fold import scaled_bias, scaled_weight


def fuse(graph: Graph, *, direct: bool = False) -> Graph:
    """Apply all rules in place; returns the graph. `direct`: no output reads a number that the model's does not."""
    canonical = tuple(rule for rule in CANONICAL if not (direct and rule is as_product))
    for rules in (canonical, INTO_BLOCKS, CHAINS, STENCILS, LEFT_OVER, CONCATS):
        run_to_fixpoint(graph, rules)
    return graph


def absorb(node: Node, source: Node, op: Op, inputs: list[Node] | None = None) -> bool:
    """`node` replaces `source` and itself: it computes `op`, by default from the inputs of `source`."""
    node.op = op
    node.inputs = list(source.inputs) if inputs is None else inputs
    return True


# Canonical forms.


def affine_of_affine(graph: Graph, node: Node, users: Users) -> bool:
    """Two affine ops in a row become one."""
    if not isinstance(second := node.op, Affine):
        return False
    source = node.inputs[0]
    if not isinstance(first := source.op, Affine) or not only_user(source, users):
        return False
    shift = scaled_bias(first.shift, second.scale, second.shift)
    return absorb(node, source, Affine(first.scale * second.scale, shift))


# Into blocks.


def _scaled(stage: Stage, scale: Tensor, shift: Tensor) -> Stage:
    bias = scaled_bias(stage.bias, scale, shift)
    filters = scale.view(-1, stage.groups).t().reshape(-1) if stage.interleaved else scale
    return replace(stage, weight=scaled_weight(stage.weight, filters), bias=bias)


def affine_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    """BatchNorm after a convolution scales its weights and bias."""
    if not isinstance(node.op, Affine) or not only_user(source := node.inputs[0], users):
        return False
    scale, shift = node.op.scale, node.op.shift
    made: Op
    match source.op:
        case Block(stages=(*stages, Stage(act="") as last), residual=False, act="") as block:
            parallel = block.parallel and replace(_scaled(block.parallel, scale, shift), bias=None)
            made = replace(block, stages=(*stages, _scaled(last, scale, shift)), parallel=parallel)
        case GatedSum(act="") as gated:
            old_scale = torch.ones_like(scale) if gated.scale is None else gated.scale
            made = replace(gated, scale=old_scale * scale, shift=scaled_bias(gated.shift, scale, shift))
        case Upsample(act="") as up:
            weight = scaled_weight(up.weight, scale, transposed=True)
            made = replace(up, weight=weight, bias=scaled_bias(up.bias, scale, shift))
        case _:
            return False
    return absorb(node, source, made)


def affine_over_sum(graph: Graph, node: Node, users: Users) -> bool:
    """BatchNorm after the sum of two convolutions: one of them takes scale and shift, the other the scale."""
    if not isinstance(node.op, Affine) or not isinstance((add := node.inputs[0]).op, Add) or not only_user(add, users):
        return False
    if add.inputs[0] is add.inputs[1] or not all(only_user(x, users) for x in add.inputs):
        return False
    made = []
    for source, part in zip(add.inputs, (node.op.shift, torch.zeros_like(node.op.shift)), strict=True):
        block = source.op
        if not isinstance(block, Block) or not block.is_bare() or not isinstance(stage := block.stages[0], Stage):
            return False
        made.append(replace(block, stages=(_scaled(stage, node.op.scale, part),)))
    for source, block in zip(add.inputs, made, strict=True):
        source.op = block
    return absorb(node, add, add.op)


def affine_as_stencil(graph: Graph, node: Node, users: Users) -> bool:
    """A BatchNorm that nothing absorbed: a depthwise 1×1, which takes the activation after it and joins a chain."""
    if not isinstance(node.op, Affine) or len(node.shape) != 4 or node.shape[2:] == (1, 1):
        return False
    node.op = Block((Stage(node.op.scale.view(-1, 1, 1, 1).clone(), node.op.shift, groups=node.channels),))
    return True


def affine_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """BatchNorm before a convolution without padding, if no op before it absorbed it."""
    block = node.op
    if not isinstance(block, Block) or block.gate or block.parallel or block.concat != 1:
        return False
    source, stage = node.inputs[0], block.stages[0]
    if not isinstance(source.op, Affine) or not only_user(source, users):
        return False
    if isinstance(stage, Branches) or any(stage.padding) or stage.interleaved:
        return False
    scale, shift = source.op.scale, source.op.shift
    per_group = stage.c // stage.groups, stage.o // stage.groups
    index = torch.arange(stage.o) // per_group[1] * per_group[0]
    columns = index[:, None] + torch.arange(per_group[0])  # O C/G: the input channel of each weight
    weight = stage.weight * scale[columns][:, :, None, None]
    bias = (stage.weight * shift[columns][:, :, None, None]).sum((1, 2, 3))
    bias = bias if stage.bias is None else bias + stage.bias
    node.op = replace(block, stages=(replace(stage, weight=weight, bias=bias), *block.stages[1:]))
    node.inputs = [source.inputs[0], *node.inputs[1:]]
    return True


def act_into_producer(graph: Graph, node: Node, users: Users) -> bool:
    """An activation after a convolution becomes part of its epilogue."""
    if not isinstance(node.op, Activation) or not only_user(source := node.inputs[0], users):
        return False
    act, made = node.op.name, source.op
    match made:
        case Block(act="", stages=(*_, Branches())) | Block(act="", residual=True):
            made = replace(made, act=act)
        case Block(act="", stages=(*stages, Stage(act="") as last)):
            made = replace(made, stages=(*stages, replace(last, act=act)))
        case GatedSum(act="") | Upsample(act="") | Linear(act=""):
            made = replace(made, act=act)
        case _:
            return False
    return absorb(node, source, made)


def act_into_add(graph: Graph, node: Node, users: Users) -> bool:
    """An activation after a sum that no block took becomes part of it. (An average comes later, in CONCATS.)"""
    if not isinstance(node.op, Activation) or not only_user(source := node.inputs[0], users):
        return False
    if not isinstance(source.op, Add) or source.op.act:
        return False
    return absorb(node, source, replace(source.op, act=node.op.name))


def pad_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """Zeros around a convolution's input become its padding."""
    block = node.op
    if not isinstance(block, Block) or block.concat != 1 or block.parallel:
        return False
    source, stage = node.inputs[0], block.stages[0]
    if not isinstance(source.op, Pad) or isinstance(stage, Branches):
        return False
    padding: Any = tuple(a + b for a, b in zip(stage.padding, source.op.padding, strict=True))
    node.op = replace(block, stages=(replace(stage, padding=padding), *block.stages[1:]))
    node.inputs = [source.inputs[0], *node.inputs[1:]]
    return True


def add_into_block(graph: Graph, node: Node, users: Users) -> bool:
    """A sum with a block's result: the other map becomes the block's residual. The later of two blocks takes it."""
    if not isinstance(node.op, Add) or node.inputs[0] is node.inputs[1]:
        return False
    place = {x: i for i, x in enumerate(graph.nodes)}
    for source in sorted(node.inputs, key=lambda x: -place[x]):
        other = node.inputs[1 - node.inputs.index(source)]
        block = source.op
        if not isinstance(block, Block) or not only_user(source, users):
            continue
        if block.residual or block.act or block.stages[-1].act:  # no primitive adds behind an activation
            continue
        inputs = [*source.inputs[: block.concat], other, *source.inputs[block.concat :]]
        return absorb(node, source, replace(block, residual=True), inputs)
    return False


def parallel_into_block(graph: Graph, node: Node, users: Users) -> bool:
    """The sum of a k×k convolution and a 1×1 of the same map: one pass over the map.

    Where the 1×1 reads a filter's own group, its entries go to the centre of the kernel, and zeros take their place.
    """
    if not isinstance(node.op, Add) or not all(isinstance(x.op, Block) and only_user(x, users) for x in node.inputs):
        return False
    spatial, plain = sorted(node.inputs, key=lambda x: x.op.stages[0].subsampling)  # type: ignore[attr-defined]
    block, other = spatial.op, plain.op
    if not isinstance(block, Block) or not isinstance(other, Block) or spatial.inputs != plain.inputs:
        return False
    stage, product = block.stages[0], other.stages[0]
    if not block.is_bare() or not other.is_bare() or isinstance(stage, Branches) or isinstance(product, Branches):
        return False
    if stage.subsampling or stage.depthwise or not stage.centred:
        return False
    if not product.subsampling or product.stride != stage.stride:
        return False
    biases = [b for b in (stage.bias, product.bias) if b is not None]
    bias = torch.stack(biases).sum(0) if biases else None
    (r, s), weight, beside = stage.kernel, stage.weight.clone(), product.weight.clone()
    within = (*stage.channels(), 0, 0)
    weight[:, :, r // 2, s // 2] += beside[within]
    beside[within] = 0
    stages = (replace(stage, weight=weight, bias=bias),)
    made = replace(block, stages=stages, parallel=replace(product, weight=beside, bias=None))
    return absorb(node, spatial, made)


def scale_into_consumer(graph: Graph, node: Node, users: Users) -> bool:
    """Squeeze-and-excite: a 1×1 reads its input times a gate per sample and channel."""
    block = node.op
    if not isinstance(block, Block) or block.gate or block.concat != 1 or len(block.stages) != 1:
        return False
    source = node.inputs[0]
    if not isinstance(source.op, Scale) or not block.stages[0].pointwise or not only_user(source, users):
        return False
    node.op = replace(block, gate=True)
    node.inputs = [source.inputs[0], *node.inputs[1:], source.inputs[1]]
    return True


# Chains.


def block_into_chain(graph: Graph, node: Node, users: Users) -> bool:
    """Depthwise stencils, one after another, then a 1×1; a group convolution, then a 1×1."""
    block = node.op
    if not isinstance(block, Block) or block.concat != 1 or block.parallel or block.gate:
        return False
    source = node.inputs[0]
    first = source.op
    if not isinstance(first, Block) or not only_user(source, users):
        return False
    if first.residual or first.act or first.parallel or first.gate or source in node.inputs[1:]:
        return False
    head = block.stages[0]
    grouped = len(first.stages) == 1 and first.stages[0].groups > 1 and head.pointwise
    stencils = all(stage.depthwise or isinstance(stage, Branches) for stage in first.stages)
    if not grouped and not (stencils and (head.depthwise or head.pointwise)):
        return False
    node.op = replace(block, stages=(*first.stages, *block.stages), concat=first.concat)
    node.inputs = [*source.inputs, *node.inputs[1:]]
    return True


def filters_into_branches(graph: Graph, node: Node, users: Users) -> bool:
    """Several filters of each channel, then a 1×1 (a depth multiplier): as many depthwise branches of all channels."""
    block = node.op
    if not isinstance(block, Block) or block.parallel or block.gate or len(block.stages) < 2:
        return False
    stage, product = block.stages[:2]
    if isinstance(stage, Branches) or isinstance(product, Branches) or not product.pointwise or stage.interleaved:
        return False
    c, each = stage.c, stage.o // stage.c
    if stage.groups != c or each < 2:
        return False
    branches = [
        replace(stage, weight=stage.weight[j::each], bias=None if stage.bias is None else stage.bias[j::each])
        for j in range(each)
    ]
    head = Branches(tuple(Branch(0, c, branch) for branch in branches), c)
    columns = product.weight.unflatten(1, (c, each)).transpose(1, 2).flatten(1, 2)
    node.op = replace(block, stages=(head, replace(product, weight=columns), *block.stages[2:]))
    return True


def linear_as_product(graph: Graph, node: Node, users: Users) -> bool:
    """A linear layer becomes a 1×1 on a one-pixel map (a global average, or `N C`), then the view `N C`."""
    linear = node.op
    if not isinstance(linear, Linear):
        return False
    source, flat = node.inputs[0], Call(aten.flatten.using_ints, (Ref(0), 1))
    if isinstance(source.op, Call) and source.op.target is flat.target and source.inputs[0].shape[2:] == (1, 1):
        source = source.inputs[0]
    else:
        size = (*source.shape, 1, 1)
        view = Call(aten.unflatten.int, (Ref(0), 1, size[1:]))
        source = graph.put(Node(view, [source], size, source.dtype, f"{source.name}.map"), at=node)
    bias = None if linear.bias is None else linear.bias.double()
    stage = Stage(linear.weight.double()[:, :, None, None], bias, act=linear.act)
    product = Node(Block((stage,)), [source], (*node.shape, 1, 1), node.dtype, f"{node.name}.product")
    graph.put(product, at=node)
    node.op, node.inputs = flat, [product]
    return True


CANONICAL: tuple[Rule, ...] = (
    as_gated_sum, as_named_activation, as_shuffle, as_interleaved, as_product, affine_of_affine, affine_over_sum,
    slice_of_cat, cat_of_cat, average_of_cat,
)  # fmt: skip
INTO_BLOCKS: tuple[Rule, ...] = (
    affine_of_affine, affine_into_producer, act_into_producer, pad_into_consumer, parallel_into_block, add_into_block,
    scale_into_consumer,
)  # fmt: skip
CHAINS: tuple[Rule, ...] = (
    cat_into_branches,
    block_into_chain,
    filters_into_branches,
    affine_into_consumer,
    affine_into_producer,
    act_into_producer,
)
STENCILS: tuple[Rule, ...] = (affine_as_stencil,)
LEFT_OVER: tuple[Rule, ...] = (
    act_into_producer,
    act_into_add,
    block_into_chain,
    filters_into_branches,
    linear_as_product,
)
CONCATS: tuple[Rule, ...] = (cat_into_consumer, average_into_producer)
