"""`ops/separable.py` in Halide, where there is a stencil: stencils and projection of a block of rows.

Channels that go through different stencils, or come from different inputs, are tracks of their own; the projection sums
over them. It takes all pixels of the block in a row, whose tiles need not end where rows end.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.depthwise import (
    Chain,
    Track,
    chain,
    inside,
    schedule_chain,
    schedule_inside,
    schedule_sums,
)
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    Axes,
    Tile,
    bound_output,
    projection,
    schedule_output,
    schedule_projection,
    start_of,
)


@dataclass(frozen=True)
class Core:
    """What one kernel computes; see `Separable`. Without a projection it has one track.

    Args:
        storage: of the maps; scratch is float32, but for what a product reads.
        out_pixel, residual: numbers from one pixel to the next of the output, and of the map that is added (0: none).
    """

    tracks: tuple[Track, ...]
    out_channels: int | None
    out_pixel: int
    bias: bool
    activation: str
    residual: int
    gate: bool
    element: ElementType = FLOAT32


def depthwise(core: Core, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel of stencils alone, `c x y`, and its arguments: the chain's, then the residual.

    The last stencil is part of the output's own loop: its result is stored once.
    """
    hl, axes, (track,), element = halide(), Axes(), core.tracks, core.element
    c, x, y, lanes = axes.c, axes.x, axes.y, tile.lanes
    made, out = chain(axes, track, 0, lanes, element), hl.Func("out")
    value = made.value[c % lanes, c // lanes, x, y]
    if core.residual:
        made.arguments.append(map_image("residual", core.residual, element))
        value = value + element.widen(made.arguments[-1])[c, x, y]
    out[c, x, y] = element.narrow(activate(core.activation, value, c, x, y))
    tail = hl.TailStrategy.RoundUp if track.channels % lanes == 0 else hl.TailStrategy.Predicate
    out.split(c, axes.co, axes.ci, lanes, tail)
    out.split(x, axes.xo, axes.xi, track.tiles[-1], hl.TailStrategy.ShiftInwards)
    strips = [axes.xs] if track.strips[-1] else []
    if strips:
        out.split(axes.xo, axes.xs, axes.xo, track.strips[-1], hl.TailStrategy.GuardWithIf)
    out.reorder(axes.ci, axes.xi, axes.xo, y, *strips, axes.co).vectorize(axes.ci).unroll(axes.xi)
    if made.sums is not None:
        schedule_sums(axes, made.sums, out, axes.xo, lanes, track.tiles[-1])
    schedule_chain(axes, made, out, axes.co, lanes, track.from_memory)
    bound_output(out, track.channels, core.out_pixel)
    return out, made.arguments


def projected(core: Core, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel of stencils and projection, `m x` with the pixels of whole rows, at least `tile.pixels` of them.

    Arguments: the output (whose extent says which rows the tracks make); per track those of the chain, then the packed
    1×1 and the gate; at last the bias and the residual, `m x`.
    """
    hl, axes, element = halide(), Axes(), core.element
    block = image("block", 2, element)
    out, parts, arguments = hl.Func("out"), [], [block]
    for index, track in enumerate(core.tracks):
        made = chain(axes, track, index, tile.lanes, element)
        weights = weights_image(f"w{index}", tile.block, track.channels, element)
        arguments += [*made.arguments, weights]
        gate = image(f"gate{index}", 1) if core.gate else None
        arguments += [] if gate is None else [gate]
        flat = _flat(axes, made, track, gate, block, tile, element, f"flat{index}")
        parts.append((element.from_scratch(flat), track.channels, weights))
    start = start_of(axes, core.bias, arguments)
    acc = projection(axes, parts, start, tile, element, flat=True)
    value = acc[axes.m, axes.x]
    if core.residual:
        arguments.append(map_image("residual", core.residual, element, 2))
        value = value + element.widen(arguments[-1])[axes.m, axes.x]
    out[axes.m, axes.x] = element.narrow(activate(core.activation, value, axes.m, axes.x))
    assert core.out_channels is not None
    schedule_output(axes, out, core.out_channels, tile, [], whole_tiles=True)
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, parts, tile, element)
    bound_output(out, core.out_channels, core.out_pixel, flat=True)
    return out, arguments


def _flat(
    axes: Axes, made: Chain, track: Track, gate: Any, block: Any, tile: Tile, element: ElementType, name: str
) -> Any:
    """What the projection reads: the chain's result and its gate, `c x` with the block's pixels in a row."""
    hl, lanes, (i, b) = halide(), tile.lanes, (axes.i, axes.b)
    pixels, func = block.dim(1), hl.Func(name)
    func[i, b, axes.x] = hl.undef(element.scratch_type)
    rows = pixels.min() // made.w, pixels.extent() // made.w
    stages = []
    for number, columns in enumerate(made.columns):
        loops, lane, column, row = inside(
            axes, made, columns, track, -1, lanes, f"{name}{number}", gate is not None, rows
        )
        value = columns.value[lane, b, column, row]
        value = value if gate is None else value * element.quiet_nan(gate[b * lanes + lane])
        func[lane, b, row * made.w + column] = element.to_scratch(value)
        stages.append(loops)
    func.compute_root().bound_extent(i, lanes).vectorize(i, lanes)
    vectors = tile.whole(track.channels) // lanes
    func.bound_extent(b, vectors).align_storage(b, tile.scratch_stride(track.channels) // lanes)
    for stage, loops in enumerate(stages):
        by_pixel = track.direct and not made.between
        schedule_inside(axes, func, stage, loops, [b], made.sums, lanes, by_pixel)
    schedule_chain(axes, made, func, b, lanes, track.from_memory)
    read = hl.Func(f"{name}_channel")
    read[axes.c, axes.x] = func[axes.c % lanes, axes.c // lanes, axes.x]
    return read
