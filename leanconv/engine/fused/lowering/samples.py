"""Values to measure with: like those of a node, with random numbers; and what makes two nodes equally fast."""

import math
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node, Op
from leanconv.engine.fused.ir.kinds.data_movement import Slice
from leanconv.engine.fused.ir.kinds.integer import Integer
from leanconv.engine.fused.ir.kinds.values import Constant, Input, Size
from leanconv.engine.fused.ir.stages import Branches, Stage
from leanconv.engine.fused.lowering.implementations import LAST
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.quantized import Quantization, Quantized

ROWS = 24  # of a map on which an integer primitive is compared with its reference
DRAWN = 65_537  # random numbers of a map, before they come again: a prime, so that no two rows or channels are alike


def sample(node: Node, *, empty: bool = False) -> Tensor:
    """A value like the node's result, or memory for one; a slice as a view."""
    if isinstance(node.op, Constant | Size):
        return node.op.value  # type: ignore[return-value]
    if isinstance(node.op, Slice) and node.shape[2:] != (1, 1):
        return sample(node.inputs[0], empty=empty).narrow(1, node.op.start, node.op.stop - node.op.start)
    if empty or not (node.dtype.is_floating_point or node.dtype == torch.uint8):
        made = (torch.empty if empty else torch.zeros)(node.shape, dtype=node.dtype)
    else:
        made = _drawn(math.prod(node.shape), node.dtype).view(node.shape)
    if len(node.shape) != 4 or isinstance(node.op, Input):  # an image comes in planes
        return made
    return made.contiguous(memory_format=LAST)


def _drawn(count: int, dtype: torch.dtype) -> Tensor:
    """Random numbers, repeated where there are many: to draw a large map takes as long as to convolve it."""
    if dtype == torch.uint8:
        numbers = torch.randint(0, 256, (min(count, DRAWN),), dtype=dtype)
    else:
        numbers = torch.randn(min(count, DRAWN), dtype=dtype)
    return numbers.repeat(-(-count // DRAWN))[:count] if count > DRAWN else numbers


def geometry(node: Node) -> Hashable:
    """All that decides how fast a node runs: everything but its weights' values."""
    inputs = tuple((x.shape, x.dtype, isinstance(x.op, Slice) and x.inputs[0].shape) for x in node.inputs)
    return node.dtype, torch.get_num_threads(), inputs, _sizes(node.op)


def _sizes(data: Any) -> Hashable:
    match data:
        case Tensor():
            return tuple(data.shape)
        case Quantization():  # a scale decides no time
            return data.zero_point
        case Quantized():
            return repr(data.form), *map(_sizes, (data.inputs, data.output, data.inner, data.addend))
        case Stage() | Branches() | Op():
            return type(data).__name__, tuple(_sizes(value) for value in vars(data).values())
        case tuple() | list():
            return tuple(map(_sizes, data))
    return repr(data)


def of_few_rows(node: Node) -> Node:
    """The node on maps of at most about `ROWS` rows; itself where they have no more."""
    op = node.op
    if not isinstance(op, Integer):
        return node
    read = [x for x in op.maps(node.inputs) if x is not None]
    source = read[-1] if isinstance(op.form.form, GatedSum) else read[0]
    height = source.shape[2]
    rows = min(height, ROWS)
    shape = (*node.shape[:2], *op.form.size(rows, source.shape[3]))
    if rows == height or min(shape[2:]) < 1:
        return node
    of_size = {source.shape[2:]: (rows, source.shape[3]), node.shape[2:]: shape[2:]}  # the residual has the result's
    inputs = [_like(x, of_size.get(x.shape[2:], x.shape[2:])) for x in node.inputs]
    return replace(node, inputs=inputs, shape=shape)


def _like(node: Node, size: tuple[int, ...]) -> Node:
    """A value of another size with the same channels in memory."""
    sources = [_like(x, size) for x in node.inputs] if isinstance(node.op, Slice) else []
    return Node(node.op, sources, (*node.shape[:2], *size), node.dtype, node.name)
