"""What the calibration images put into every map of a graph, and into the maps inside its blocks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.graph import Graph, Node, Primitive
from leanconv.engine.fused.lowering.primitives import primitive
from leanconv.engine.fused.passes.quantization import Levels, maps_of, moves, quantizable, ties
from leanconv.engine.fused.quantization.equalize import equalized
from leanconv.engine.fused.quantization.ranges import Observed, pooled
from leanconv.ops.forms import Form, joined
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.quantized import inner_maps
from leanconv.ops.separable import Separable, side_by_side

EQUALIZED = 4  # calls from which the sizes of channels are taken


@torch.no_grad()
def observe(graph: Graph, program: Program, calls: Sequence[Sequence[Tensor]]) -> Levels:
    """The quantization of every map that an integer primitive may read or write.

    Args:
        program: runs `graph` in float32.
        calls: the tensors of each calibration batch.
    Raises: ValueError for NaN or infinity inside the network.
    """
    found = {node: made for node in quantizable(graph) if (made := primitive(node)) is not None}
    group = ties(graph)
    groups = {group[x] for node in found for x in (*maps_of(node), node)}
    maps = {x: Observed() for x in graph.nodes if group[x] in groups and not moves(x)}
    weights = _equalized(found, program, calls)
    inner = {node: [Observed() for _ in range(inner_maps(form))] for node, (form, _) in found.items()}
    for tensors in calls:
        values = program.values(*tensors)
        for x, seen in maps.items():
            seen.see(values[program.places[x]])
        for node, (form, own) in found.items():
            if inner[node]:
                between = inside(form, weights.get(node, own), _maps(node, program, values))
                for each, value in zip(inner[node], between, strict=True):
                    each.see(value)
    shared = {key: pooled([seen for x, seen in maps.items() if group[x] == key]).quantization() for key in groups}
    of = {x: shared[group[x]] for x in graph.nodes if group[x] in groups}
    return Levels(of, {node: tuple(each.quantization() for each in seen) for node, seen in inner.items()}, weights)


def _equalized(
    found: Mapping[Node, Primitive], program: Program, calls: Sequence[Sequence[Tensor]]
) -> dict[Node, list[Tensor]]:
    """The weights of all separable blocks with maps inside, equalized for a few of the calls.

    A channel's size is the average over the images of its largest number.
    """
    chains = {node: one for node, one in found.items() if isinstance(one[0], Separable) and inner_maps(one[0])}
    sizes: dict[Node, list[Tensor]] = {}
    for tensors in calls[:EQUALIZED] if chains else []:
        values = program.values(*tensors)
        for node, (form, weights) in chains.items():
            maps = inside(form, weights, _maps(node, program, values))
            seen = [value.abs().amax((2, 3)).mean(0) for value in maps]
            sizes[node] = [a + b for a, b in zip(sizes[node], seen, strict=True)] if node in sizes else seen
    return {node: equalized(*chains[node], sizes[node]) for node in sizes}  # type: ignore[arg-type]


def _maps(node: Node, program: Program, values: Sequence[Any]) -> list[Tensor | None]:
    return [None if x is None else values[program.places[x]] for x in node.op.maps(node.inputs)]


def inside(form: Form, weights: Sequence[Tensor], maps: Sequence[Tensor | None]) -> Iterator[Tensor]:
    """The float32 maps that stand between the convolutions of a primitive, in the order of `Quantized.inner`.

    `maps`: as the primitive takes them, with None for a residual or a gate that is missing.
    """
    if isinstance(form, Separable):
        yield from _between_stencils(form, list(weights), maps)
    elif isinstance(form, Grouped):
        x, left = [x for x in maps[: len(form.channels)] if x is not None], list(weights)
        count = 1 + form.pointwise + form.bias
        plain = Grouped(
            form.channels, form.out_channels, form.kernel, form.stride, form.dilation, form.padding, form.groups,
            form.interleaved, form.pointwise, form.bias, activation=form.inner_activation,
        )  # fmt: skip
        yield grouped(x, left[:count], plain)[0]


def _between_stencils(form: Separable, left: list[Tensor], maps: Sequence[Tensor | None]) -> Iterator[Tensor]:
    x = joined([each for each in maps[: len(form.channels)] if each is not None])
    followed = form.stages if form.out_channels is not None else form.stages[:-1]
    for stage in followed:
        parts = side_by_side(x, stage, left)
        yield from parts
        x = joined(parts)
    gate = maps[-1] if form.gate else None
    if gate is not None:
        yield x * gate.reshape(*x.shape[:2], 1, 1)
