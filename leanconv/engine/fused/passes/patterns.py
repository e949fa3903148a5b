"""Patterns of several nodes with one meaning: gated sum, activation, shuffle, interleaved groups, shortcut."""

import sys
from dataclasses import replace
from typing import Any

import torch

from leanconv.engine.fused.ir.graph import Graph, Node, Users
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.call import Call, Ref
from leanconv.engine.fused.ir.kinds.data_movement import Shuffle
from leanconv.engine.fused.ir.kinds.elementwise import Activation
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.reductions import Average, Sum
from leanconv.engine.fused.ir.kinds.values import Size
from leanconv.engine.fused.ir.stages import Stage

aten = torch.ops.aten
# Multiply-adds of a shortcut as a 1×1 that take no longer than PyTorch's calls: two or three of some microseconds each.
_AS_PRODUCT = 1 << 18


def _calls(node: Node, target: Any) -> bool:
    return isinstance(node.op, Call) and node.op.target is target


def _second_argument(node: Node) -> Any:
    """The second argument of a call: a number, or the value of a size in the captured call."""
    call: Call = node.op  # type: ignore[assignment]
    argument = call.args[1]
    if isinstance(argument, Ref):
        source = node.inputs[argument.place]
        return source.op.value if isinstance(source.op, Size) else None
    return argument


def as_gated_sum(graph: Graph, node: Node, users: Users) -> bool:
    """`lerp(b, a, sigmoid((sum a - sum b) / HW))`, b a bare 1×1 without another reader: `ops.gated_sum`."""
    if not _calls(node, aten.lerp.Tensor) or len(node.shape) != 4:
        return False
    b, a, gate = node.inputs
    if gate.op != Activation("sigmoid") or not _calls(share := gate.inputs[0], aten.div.Tensor):
        return False
    if _second_argument(share) != node.shape[2] * node.shape[3]:
        return False
    if not _calls(minus := share.inputs[0], aten.sub.Tensor):
        return False
    if [x.op for x in minus.inputs] != [Sum(), Sum()] or [x.inputs[0] for x in minus.inputs] != [a, b]:
        return False
    if not isinstance(b.op, Block) or not b.op.is_bare() or b.op.concat != 1:
        return False
    stage = b.op.stages[0]
    if not isinstance(stage, Stage) or not stage.pointwise or set(users[b]) != {node, minus.inputs[1]}:
        return False
    x = b.inputs[0]
    averages = []
    for source in (a, x):
        average = Node(Average(), [source], (*source.shape[:2], 1, 1), node.dtype, f"{source.name}.average")
        averages.append(graph.put(average, at=node))
    node.op, node.inputs = GatedSum(stage.weight, stage.bias), [a, averages[0], x, averages[1]]
    return True


def as_named_activation(graph: Graph, node: Node, users: Users) -> bool:
    """`x · sigmoid(x)` is SiLU, `x · hardsigmoid(x)` hardswish."""
    if not _calls(node, aten.mul.Tensor):
        return False
    products = {"sigmoid": "silu", "hardsigmoid": "hardswish"}
    for x, gate in (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ():
        if isinstance(gate.op, Activation) and gate.inputs[0] is x and gate.op.name in products:
            node.op, node.inputs = Activation(products[gate.op.name]), [x]
            return True
    return False


def as_shuffle(graph: Graph, node: Node, users: Users) -> bool:
    """`reshape(N, a, b, H, W)`, `transpose(1, 2)`, `reshape(N, C, H, W)`: channel i·b + j becomes channel j·a + i."""
    if not _calls(node, aten.reshape.default) or len(node.shape) != 4:
        return False
    swapped = node.inputs[0]
    if not isinstance(swapped.op, Call) or swapped.op.target is not aten.transpose.int:
        return False
    if sorted(d % 5 for d in swapped.op.args[1:]) != [1, 2]:
        return False
    opened = swapped.inputs[0]
    if not _calls(opened, aten.reshape.default) or len(opened.shape) != 5 or len(opened.inputs[0].shape) != 4:
        return False
    x, (n, a, b, h, w) = opened.inputs[0], opened.shape
    if x.shape != (n, a * b, h, w) or node.shape != x.shape:
        return False
    node.op, node.inputs = Shuffle(a, b), [x]
    return True


def as_interleaved(graph: Graph, node: Node, users: Users) -> bool:
    """A channel shuffle on both sides of a grouped convolution: it reads and writes interleaved channels instead."""
    if not isinstance(node.op, Shuffle) or not isinstance(block := (conv := node.inputs[0]).op, Block):
        return False
    source = conv.inputs[0]
    if len(users[conv]) != 1 or len(conv.inputs) != 1 or len(block.stages) != 1 or block.act or block.parallel:
        return False
    stage = block.stages[0]
    if not isinstance(source.op, Shuffle) or not isinstance(stage, Stage) or stage.interleaved:
        return False
    groups = stage.groups
    if source.op != Shuffle(stage.c // groups, groups) or node.op != Shuffle(groups, stage.o // groups):
        return False
    bias = None if stage.bias is None else stage.bias.view(groups, -1).t().reshape(-1)
    node.op = replace(block, stages=(replace(stage, bias=bias, interleaved=True),))
    node.inputs = [source.inputs[0]]
    return True


def as_product(graph: Graph, node: Node, users: Users) -> bool:
    """A strided slice of a map, then channels of zeros (ResNet's shortcut "option A"): a 1×1 of ones and zeros.

    A number that is not finite makes NaN of the other channels of its pixel; direct arithmetic goes without.
    """
    padded = isinstance(node.op, Call) and node.op.target in (aten.pad.default, aten.constant_pad_nd.default)
    if not padded or len(node.shape) != 4 or not node.dtype.is_floating_point or not node.channels:
        return False
    _, sides, *rest = node.op.args  # type: ignore[attr-defined]
    if len(sides) != 6 or any(sides[:4]) or min(sides) < 0 or any(each not in ("constant", None, 0) for each in rest):
        return False
    source, strides = node.inputs[0], {2: 1, 3: 1}
    while _calls(source, aten.slice.Tensor) and len(users[source]) == 1:
        _, axis, start, stop, step = (*source.op.args, 1)[:5]  # type: ignore[attr-defined]
        if axis not in strides or start or stop != sys.maxsize:  # to the end, at any size
            return False
        strides[axis] *= step
        source = source.inputs[0]
    c, (_, o, p, q) = source.channels, node.shape
    if node.shape[0] * p * q * c * o > _AS_PRODUCT:
        return False
    weight = torch.zeros(o, c, 1, 1, dtype=torch.float64)
    weight[sides[4] : sides[4] + c, :, 0, 0] = torch.eye(c, dtype=torch.float64)
    node.op, node.inputs = Block((Stage(weight, stride=(strides[2], strides[3])),)), [source]
    return True
