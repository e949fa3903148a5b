"""Depthwise stencils and 1×1 projection of `ops/separable.py` fused in one Halide kernel, block of rows by block.

Channels with different stencils, or from different inputs, are separate tracks; the projection sums over them. It takes
all pixels of a block as one row, so its tiles may cross the ends of rows. A 1×1 alone is in `pointwise.py`.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.depthwise import Chain, Track, column_loops, stencil_chain
from leanconv.kernels.cpu.pipelines.depthwise_schedule import schedule_accumulators, schedule_chain, schedule_columns
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    Axes,
    Operand,
    Tile,
    bound_output,
    initial_value,
    projection,
    schedule_output,
    schedule_projection,
)


@dataclass(frozen=True)
class SeparableCore:
    """What one kernel computes; see `ops.separable.Separable`. Without a projection it has one track.

    Args:
        tracks: the channels, by their stencils.
        out_channels: O of the projection; None without one.
        out_pixel, residual: numbers from pixel to pixel of the output, and of the map that is added (0: none).
        bias: whether the projection has one.
        activation: the last one.
        gate: whether the projection's input is multiplied by one factor per channel.
        element: of the maps. Scratch is float32, except what a product of pairs reads.
    """

    tracks: tuple[Track, ...]
    out_channels: int | None
    out_pixel: int
    bias: bool
    activation: str
    residual: int
    gate: bool
    element: ElementType = FLOAT32


def depthwise(core: SeparableCore, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel of stencils alone, `c x y`, and its arguments: the chain's, then the residual.

    The last stencil is part of the output's own loop, so its result is stored once.
    """
    hl, axes, (track,), element = halide(), Axes(), core.tracks, core.element
    c, x, y, lanes = axes.c, axes.x, axes.y, tile.lanes
    chain, out = stencil_chain(axes, track, 0, lanes, element), hl.Func("out")
    value = chain.value[c % lanes, c // lanes, x, y]
    if core.residual:
        chain.arguments.append(map_image("residual", core.residual, element))
        value = value + element.widen(chain.arguments[-1])[c, x, y]
    out[c, x, y] = element.narrow(activate(core.activation, value, c, x, y))
    tail = hl.TailStrategy.RoundUp if track.channels % lanes == 0 else hl.TailStrategy.Predicate
    out.split(c, axes.co, axes.ci, lanes, tail)
    # ShiftInwards: a row has at least one tile, so the last one overlaps and needs no mask.
    out.split(x, axes.xo, axes.xi, track.tiles[-1], hl.TailStrategy.ShiftInwards)
    strips = [axes.xs] if track.strips[-1] else []
    if strips:
        # All rows of a strip of tiles, then the next strip: the rows that a stencil shares stay in the L1 cache.
        out.split(axes.xo, axes.xs, axes.xo, track.strips[-1], hl.TailStrategy.GuardWithIf)
    # Vectors of channels outermost: the maps between the stencils hold one vector and fit the L1 cache.
    out.reorder(axes.ci, axes.xi, axes.xo, y, *strips, axes.co).vectorize(axes.ci).unroll(axes.xi)
    if chain.accumulators is not None:
        schedule_accumulators(axes, chain.accumulators, out, axes.xo, lanes, track.tiles[-1])
    schedule_chain(axes, chain, out, axes.co, lanes, track.from_memory)
    bound_output(out, track.channels, core.out_pixel)
    return out, chain.arguments


def projected(core: SeparableCore, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel of stencils and projection, `m x` over the pixels of whole rows, at least `tile.pixels` of them.

    Arguments: the output (its extent says which rows the tracks compute); per track those of the chain, then the packed
    1×1 and the gate; last the bias and the residual, `m x`.
    """
    hl, axes, element = halide(), Axes(), core.element
    block = image("block", 2, element)
    out, operands, arguments = hl.Func("out"), [], [block]
    for index, track in enumerate(core.tracks):
        chain = stencil_chain(axes, track, index, tile.lanes, element)
        weights = weights_image(f"w{index}", tile.block, track.channels, element)
        arguments += [*chain.arguments, weights]
        gate = image(f"gate{index}", 1) if core.gate else None
        arguments += [] if gate is None else [gate]
        flat = _flatten(axes, chain, track, gate, block, tile, element, f"flat{index}")
        operands.append(Operand(element.from_scratch(flat), track.channels, weights))
    start = initial_value(axes, core.bias, arguments)
    acc = projection(axes, operands, start, tile, element, flat=True)
    value = acc[axes.m, axes.x]
    if core.residual:
        arguments.append(map_image("residual", core.residual, element, 2))
        value = value + element.widen(arguments[-1])[axes.m, axes.x]
    out[axes.m, axes.x] = element.narrow(activate(core.activation, value, axes.m, axes.x))
    assert core.out_channels is not None
    schedule_output(axes, out, core.out_channels, tile, [], whole_tiles=True)
    # One register tile of sums at a time; the epilogue reads it from registers.
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, operands, tile, element)
    bound_output(out, core.out_channels, core.out_pixel, flat=True)
    return out, arguments


def _flatten(
    axes: Axes, chain: Chain, track: Track, gate: Any, block: Any, tile: Tile, element: ElementType, name: str
) -> Any:
    """The projection's source: the chain's result times its gate, `c x` with the block's pixels in one row."""
    hl, lanes, (i, b) = halide(), tile.lanes, (axes.i, axes.b)
    pixels, func = block.dim(1), hl.Func(name)
    func[i, b, axes.x] = hl.undef(element.scratch_type)
    # The rows of the block, from the pixels that the output asks for: a block is whole rows.
    rows = pixels.min() // chain.w, pixels.extent() // chain.w
    stages = []
    for number, columns in enumerate(chain.columns):
        loops, lane, column, row = column_loops(
            axes, chain, columns, track, -1, lanes, f"{name}{number}", gate is not None, rows
        )
        value = columns.value[lane, b, column, row]
        value = value if gate is None else value * element.quiet_nan(gate[b * lanes + lane])
        func[lane, b, row * chain.w + column] = element.to_scratch(value)
        stages.append(loops)
    # Once per block of rows: every panel of the 1×1's weights reads all channels of it.
    func.compute_root().bound_extent(i, lanes).vectorize(i, lanes)
    vectors = tile.round_up(track.channels) // lanes
    func.bound_extent(b, vectors).align_storage(b, tile.scratch_stride(track.channels) // lanes)
    for stage, loops in enumerate(stages):
        # Without maps in between, a tile of pixels takes all channels while it is in the L1 cache.
        by_pixel = track.direct and not chain.between
        schedule_columns(axes, func, stage, loops, [b], chain.accumulators, lanes, by_pixel)
    schedule_chain(axes, chain, func, b, lanes, track.from_memory)
    read = hl.Func(f"{name}_channel")
    read[axes.c, axes.x] = func[axes.c % lanes, axes.c // lanes, axes.x]
    return read
