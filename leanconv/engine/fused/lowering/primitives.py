"""Blocks in the words of `ops/`: the form of the primitive that computes a node, and its weights in that order."""

from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.block import Block, Gated, Slices, Stage
from leanconv.engine.fused.ir.graph import Node
from leanconv.ops.activations import ACTIVATIONS
from leanconv.ops.forms import Form, Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

Primitive = tuple[Form, list[Tensor]]  # weights in the node's dtype, float32 for half ones


def primitive(node: Node) -> Primitive | None:
    """The primitive that computes `node`, or None where none does."""
    reader = {"block": _block, "gated": _gated, "upsample": _upsample, "max_pool": _max_pool}.get(node.kind)
    found = None if reader is None else reader(node)
    if found is None:
        return None
    form, weights = found
    dtype = torch.float32 if node.dtype.itemsize == 2 else node.dtype
    return form, [w.to(dtype).contiguous() for w in weights]


def _block(node: Node) -> Primitive | None:
    block: Block = node.data
    last = block.stages[-1]
    if (block.residual and last.act) or any(act not in ACTIVATIONS for act in _acts(block) if act):
        return None
    head = block.stages[0]
    if isinstance(head, Slices) or head.depthwise or head.pointwise or _subsampling(head):
        return None if block.parallel else _separable(node, block)
    return _grouped(node, block)


def _acts(block: Block) -> list[str]:
    inner = [s.act for stage in block.stages if isinstance(stage, Slices) for _, _, s in stage.parts if s]
    return [block.act, *(stage.act for stage in block.stages), *inner]


def _subsampling(stage: Stage) -> bool:
    """A 1×1 with a stride: an identity that leaves pixels out, then a product."""
    return stage.taps == (1, 1) and stage.groups == 1 and not any(stage.sides)


def _channels(node: Node, pieces: int, first: int = 0) -> tuple[int, ...]:
    return tuple(x.channels for x in node.inputs[first : first + pieces])


def _separable(node: Node, block: Block) -> Primitive | None:
    stages, weights, projection = [], [], None
    for index, stage in enumerate(block.stages):
        final = index == len(block.stages) - 1
        if isinstance(stage, Slices):
            parts = [_stencil(first, n, part, part.act if part else "") for first, n, part in stage.parts]
            weights += [w for _, _, part in stage.parts if part for w in _weights(part)]
            stages.append(tuple(parts))
        elif stage.depthwise and not (final and stage.pointwise):
            # The last stencil's activation is the form's own, which comes after the residual.
            stages.append((_stencil(0, stage.c, stage, "" if final else stage.act),))
            weights += _weights(stage)
        elif final and _subsampling(stage):
            if stage.stride != (1, 1):
                stages.append((Stencil(0, stage.c, stride=stage.stride, identity=True),))
            projection = stage
            weights += _weights(stage)
        else:
            return None
    if block.gate and projection is None:
        return None
    act = block.act if block.residual else block.act or block.stages[-1].act
    return Separable(
        _channels(node, block.pieces),
        tuple(stages),
        None if projection is None else projection.o,
        projection is not None and projection.bias is not None,
        act or "none",
        block.residual,
        block.gate,
        block.average,
    ), weights


def _stencil(first: int, channels: int, stage: Stage | None, act: str) -> Stencil:
    if stage is None:
        return Stencil(first, channels, identity=True)
    return Stencil(
        first,
        channels,
        stage.taps,
        stage.stride,
        stage.dilation,
        _padding(stage),
        stage.bias is not None,
        activation=act or "none",
    )


def _padding(stage: Stage) -> tuple[int, int, int, int]:
    left, right, top, bottom = stage.sides
    return top, bottom, left, right


def _weights(stage: Stage) -> list[Tensor]:
    return [stage.weight] if stage.bias is None else [stage.weight, stage.bias]


def _grouped(node: Node, block: Block) -> Primitive | None:
    stage: Any = block.stages[0]
    project: Any = block.stages[1] if len(block.stages) == 2 else None
    if len(block.stages) > 2 or block.gate or (project is not None and (not project.pointwise or block.parallel)):
        return None
    if block.parallel and not (stage.taps[0] % 2 and stage.taps[1] % 2):
        return None
    last = block.stages[-1]
    act = block.act if block.residual else block.act or last.act
    form = Grouped(
        _channels(node, block.pieces),
        stage.o,
        stage.taps,
        stage.stride,
        stage.dilation,
        _padding(stage),
        stage.groups,
        stage.interleaved,
        block.parallel is not None,
        stage.bias is not None,
        "none" if project is None else stage.act or "none",
        None if project is None else project.o,
        project is not None and project.bias is not None,
        act or "none",
        block.residual,
        block.average,
    )
    weights = [stage.weight]
    weights += [] if block.parallel is None else [block.parallel.weight]
    weights += [] if stage.bias is None else [stage.bias]
    weights += [] if project is None else _weights(project)
    return form, weights


def _gated(node: Node) -> Primitive | None:
    gated: Gated = node.data
    if gated.act and gated.act not in ACTIVATIONS:
        return None
    affine = gated.scale is not None and gated.shift is not None
    weights = [gated.weight] + ([] if gated.bias is None else [gated.bias])
    weights += [gated.scale, gated.shift] if gated.scale is not None and gated.shift is not None else []
    return GatedSum(
        _channels(node, gated.pieces, 2),
        gated.weight.shape[0],
        gated.bias is not None,
        affine,
        gated.act or "none",
        gated.average,
    ), weights


def _upsample(node: Node) -> Primitive | None:
    up = node.data
    if up.act and up.act not in ACTIVATIONS:
        return None
    weights = [up.weight] + ([] if up.bias is None else [up.bias])
    return Upsample((up.weight.shape[0],), up.weight.shape[1], 2, up.bias is not None, up.act or "none"), weights


def _max_pool(node: Node) -> Primitive | None:
    kernel, stride, (rows, columns), average = node.data
    return MaxPool(node.channels, kernel, stride, (rows, rows, columns, columns), average), []
