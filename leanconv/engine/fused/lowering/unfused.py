"""A block as its stages one after another, where no kernel makes the whole: each stage made by whoever can."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.ir.block import Block, Slices, Stage, activate
from leanconv.engine.fused.ir.graph import Node
from leanconv.ops.exact import exact_mean

Run = Callable[..., Any]
# Of a stage, its input's shape and dtype; None where it is not covered.
MakeStage = Callable[[Stage, tuple[int, ...], torch.dtype], Run | None]


def chain(node: Node, make_stage: MakeStage) -> Run | None:
    """A block as its stages one after another, each made by `make_stage`."""
    if any(stage.interleaved for stage in node.data.stages):
        make_stage = partial(_dealt, make_stage)
    block: Block = node.data
    shape, dtype, runs = _entry_shape(node), node.dtype, []
    for stage in block.stages:
        if isinstance(stage, Slices):
            run = _slices(make_stage, stage, shape, dtype)
        else:
            run = make_stage(stage, shape, dtype)
        if run is None:
            return None
        runs.append(run)
        shape = (shape[0], stage.o, *stage.size(*shape[2:]))
    parallel = None
    if block.parallel is not None:
        bare: Any = replace(block.stages[0], act="")
        parallel = make_stage(block.parallel, _entry_shape(node), dtype)
        first = make_stage(bare, _entry_shape(node), dtype)
        if parallel is None or first is None:
            return None
        runs[0] = partial(_both, first, parallel, block.stages[0].act)
    if block.pieces == 1 and len(runs) == 1 and not (block.residual or block.gate or block.act or block.average):
        return runs[0]
    return partial(_in_turn, block.pieces, tuple(runs), block.residual, block.gate, block.act, block.average)


def _slices(make_stage: MakeStage, slices: Slices, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
    """Stencils side by side: each on its slice, then a concatenation."""
    runs = []
    for first, channels, stage in slices.parts:
        run = make_stage(stage, (shape[0], channels, *shape[2:]), dtype) if stage else None
        if stage is not None and run is None:
            return None
        runs.append((first, channels, run))
    return lambda x: torch.cat([run(x.narrow(1, at, n)) if run else x.narrow(1, at, n) for at, n, run in runs], 1)


def _entry_shape(node: Node) -> tuple[int, ...]:
    pieces = node.inputs[: node.data.pieces]
    return (pieces[0].shape[0], sum(x.channels for x in pieces), *pieces[0].shape[2:])


def _both(first: Run, second: Run, act: str, x: Tensor) -> Tensor:
    return activate(first(x).add_(second(x)), act)


def _in_turn(
    pieces: int, runs: tuple[Run, ...], residual: bool, gate: bool, act: str, average: bool, *inputs: Tensor
) -> Any:
    h = inputs[0] if pieces == 1 else torch.cat(inputs[:pieces], 1)
    for run in runs[:-1]:
        h = run(h)
    h = runs[-1](h * inputs[-1].to(h.dtype)) if gate else runs[-1](h)
    if residual:
        h = h.add_(inputs[pieces])
    if act:
        h = activate(h, act)
    return (h, exact_mean(h, keepdim=True)) if average else h


def _dealt(make_stage: MakeStage, stage: Stage, shape: tuple[int, ...], dtype: torch.dtype) -> Run | None:
    """A stage whose groups own channels dealt like cards: they are brought together and dealt back."""
    if not stage.interleaved:
        return make_stage(stage, shape, dtype)
    groups = stage.groups
    bias = None if stage.bias is None else stage.bias.view(-1, groups).t().reshape(-1)
    run = make_stage(replace(stage, interleaved=False, bias=bias), shape, dtype)
    return None if run is None else lambda x: shuffled(run(shuffled(x, groups)), stage.o // groups)


def shuffled(x: Tensor, b: int) -> Tensor:
    """Channel i·b + j becomes channel j·a + i, in channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n, h, w, c // b, b).transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)
