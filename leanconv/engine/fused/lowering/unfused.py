"""A block stage by stage, where no kernel computes the whole: each stage is a convolution of PyTorch or oneDNN."""

import functools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.engine.fused.ir.activations import IN_PLACE, activate
from leanconv.engine.fused.ir.graph import Node, Run
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.data_movement import channel_shuffle
from leanconv.engine.fused.ir.stages import Branches, Stage
from leanconv.kernels import to_channels_last
from leanconv.measure.hardware.number_types import has_onednn, slow_type
from leanconv.ops.exact import exact_mean

# From a stage, its input's shape and its dtype to a function; None where the stage is not covered.
MakeStage = Callable[[Stage, tuple[int, ...], torch.dtype], Run | None]

# The activations that oneDNN applies to a convolution's result: name, scalars, algorithm.
ONEDNN_ACTS: dict[str, tuple[str, list[float], str]] = {
    "": ("none", [], ""), "relu": ("relu", [], ""), "relu6": ("hardtanh", [0.0, 6.0], ""), "silu": ("swish", [], ""),
    "hardswish": ("hardswish", [], ""), "hardsigmoid": ("hardsigmoid", [], ""), "sigmoid": ("sigmoid", [], ""),
    "gelu": ("gelu", [], "none"), "gelu_tanh": ("gelu", [], "tanh"),
}  # fmt: skip


def _widened(make_stage: MakeStage) -> MakeStage:
    """Let the stage compute in float32 where PyTorch is slow in the node's type. Its maps keep that type."""

    @functools.wraps(make_stage)
    def make(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
        return in_float32(lambda wide: make_stage(stage, shape, wide), dtype)

    return make


def in_float32(make: Callable[[torch.dtype], Run | None], dtype: torch.dtype) -> Run | None:
    """`make(dtype)`; if PyTorch is slow in that type, `make(float32)` between two casts."""
    if not slow_type(dtype):
        return make(dtype)
    run = make(torch.float32)
    if run is None:
        return None

    def between_casts(*inputs: Tensor) -> Any:
        made = run(*(x.float() if x.dtype == dtype else x for x in inputs))
        return (made[0].to(dtype), *made[1:]) if isinstance(made, tuple) else made.to(dtype)  # averages stay float32

    return between_casts


@_widened
def aten_stage(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run:
    """`conv2d`, then the activation."""
    weight = stage.weight.to(dtype).contiguous(memory_format=torch.channels_last)
    bias = None if stage.bias is None else stage.bias.to(dtype)
    top, bottom, left, right = stage.padding
    padding = (top, left) if stage.symmetric else (0, 0)
    sides = None if stage.symmetric else (left, right, top, bottom)
    act = IN_PLACE.get(stage.act) or (partial(activate, act=stage.act) if stage.act else None)

    def run(x: Tensor) -> Tensor:
        if sides is not None:
            x = F.pad(x, sides)
        y = torch.conv2d(to_channels_last(x), weight, bias, stage.stride, padding, stage.dilation, stage.groups)
        return y if act is None else act(y)

    return run


@_widened
def onednn_stage(stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
    """oneDNN's convolution, its weights packed once and the activation in the same pass."""
    if stage.act not in ONEDNN_ACTS or not stage.symmetric or not has_onednn(dtype):
        return None
    padding, stride, dilation = [stage.padding[0], stage.padding[2]], list(stage.stride), list(stage.dilation)
    packed = torch.ops.mkldnn._reorder_convolution_weight(
        stage.weight.to(dtype).contiguous(), padding, stride, dilation, stage.groups, list(shape)
    )
    bias = None if stage.bias is None else stage.bias.to(dtype)
    op, act, groups = torch.ops.mkldnn._convolution_pointwise.default, ONEDNN_ACTS[stage.act], stage.groups

    def run(x: Tensor) -> Tensor:
        return op(to_channels_last(x), packed, bias, padding, stride, dilation, groups, *act)  # type: ignore[no-any-return]

    return run


def stage_by_stage(node: Node, make_stage: MakeStage) -> Run | None:
    """A block as its stages one after another, each from `make_stage`; None where one of them is not covered."""
    block: Block = node.op  # type: ignore[assignment]
    if any(stage.interleaved for stage in block.stages):
        make_stage = partial(_interleaved, make_stage)
    shape, dtype, runs = _entry_shape(node, block), node.dtype, []
    for stage in block.stages:
        if isinstance(stage, Branches):
            run = _branches(make_stage, stage, shape, dtype)
        else:
            run = make_stage(stage, shape, dtype)
        if run is None:
            return None
        runs.append(run)
        shape = (shape[0], stage.o, *stage.size(*shape[2:]))
    if block.parallel is not None:
        without_act: Any = replace(block.stages[0], act="")
        parallel = make_stage(block.parallel, _entry_shape(node, block), dtype)
        first = make_stage(without_act, _entry_shape(node, block), dtype)
        if parallel is None or first is None:
            return None
        runs[0] = partial(_added, first, parallel, block.stages[0].act)
    if block.concat == 1 and len(runs) == 1 and not (block.residual or block.gate or block.act or block.average):
        return runs[0]
    return partial(_in_turn, block.concat, tuple(runs), block.residual, block.gate, block.act, block.average)


def _branches(make_stage: MakeStage, stage: Branches, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
    """Each branch on its slice, then a concatenation."""
    runs = []
    for first, channels, each in stage.branches:
        run = make_stage(each, (shape[0], channels, *shape[2:]), dtype) if each else None
        if each is not None and run is None:
            return None
        runs.append((first, channels, run))
    return lambda x: torch.cat([run(x.narrow(1, at, n)) if run else x.narrow(1, at, n) for at, n, run in runs], 1)


def _entry_shape(node: Node, block: Block) -> tuple[int, ...]:
    maps = node.inputs[: block.concat]
    return (maps[0].shape[0], sum(x.channels for x in maps), *maps[0].shape[2:])


def _added(first: Run, parallel: Run, act: str, x: Tensor) -> Tensor:
    return activate(first(x).add_(parallel(x)), act)


def _in_turn(
    concat: int, runs: tuple[Run, ...], residual: bool, gate: bool, act: str, average: bool, *inputs: Tensor
) -> Any:
    h = inputs[0] if concat == 1 else torch.cat(inputs[:concat], 1)
    for run in runs[:-1]:
        h = run(h)
    h = runs[-1](h * inputs[-1].to(h.dtype)) if gate else runs[-1](h)
    if residual:
        h = h.add_(inputs[concat])
    if act:
        h = activate(h, act)
    return (h, exact_mean(h, keepdim=True)) if average else h


def _interleaved(make_stage: MakeStage, stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
    """A stage of interleaved groups: shuffle each group's channels together, convolve, shuffle back."""
    if not stage.interleaved:
        return make_stage(stage, shape, dtype)
    groups = stage.groups
    bias = None if stage.bias is None else stage.bias.view(-1, groups).t().reshape(-1)
    run = make_stage(replace(stage, interleaved=False, bias=bias), shape, dtype)
    return None if run is None else lambda x: channel_shuffle(run(channel_shuffle(x, groups)), stage.o // groups)
