"""Schedules of the depthwise stencils: where each map between two stencils lives, and the order of its loops."""

from typing import Any

from leanconv.kernels.cpu.pipelines.depthwise import Chain, Loops
from leanconv.kernels.cpu.pipelines.gemm import Axes


def schedule_chain(axes: Axes, chain: Chain, consumer: Any, loop: Any, lanes: int, from_memory: bool) -> None:
    """The maps between the stencils: recomputed for each vector of channels, at `loop` of the consumer."""
    for index, step in enumerate(chain.between):
        func, order = step.func, [axes.y, axes.b]
        if index == 0 and from_memory:
            # A vector of channels uses one cache line per pixel. From memory, all channels of a pixel are read at once.
            func.compute_root()
            order = [axes.b, axes.y]
        else:
            # Only one vector of channels of the map exists at a time.
            func.compute_at(consumer, loop)
        func.bound_extent(axes.i, lanes).vectorize(axes.i, lanes)
        for stage, loops in enumerate(step.loops):
            by_pixel = index == 0 and from_memory
            schedule_columns(axes, func, stage, loops, order, step.accumulators, lanes, by_pixel=by_pixel)
        for border in range(len(step.loops), func.num_update_definitions()):
            func.update(border).vectorize(axes.i, lanes)


def schedule_columns(
    axes: Axes,
    func: Any,
    stage: int,
    loops: Loops,
    outer: list[Any],
    accumulators: Any,
    lanes: int,
    by_pixel: bool = False,
) -> None:
    """A stage of `column_loops`: a vector of channels, the unrolled pixels of a tile, then tiles, rows and strips.

    `outer`: the remaining variables, from the innermost. `by_pixel`: vectors of channels inside the tile loop.
    """
    # Unrolled pixels share the taps of their vector of channels, which stay in registers.
    update, lane = func.update(stage), loops.order[0] if loops.masked else axes.i
    (pixel, tile), strips = loops.order[loops.masked : loops.masked + 2], loops.order[loops.masked + 2 :]
    if by_pixel:
        update.reorder(lane, pixel, outer[0], tile, *strips, *outer[1:]).unroll(pixel)
    else:
        # Strips outside the rows: a stencil of many rows finds them in the L1 cache again.
        update.reorder(lane, pixel, tile, *outer[:-1], *strips, outer[-1]).unroll(pixel)
    # Masked lanes are a loop of the RDom. Halide vectorizes it only if races are allowed; there are none between lanes.
    (update.allow_race_conditions() if loops.masked else update).vectorize(lane, lanes)
    if accumulators is not None:
        schedule_accumulators(axes, accumulators, func, loops.tile, lanes, loops.pixels)


def schedule_accumulators(axes: Axes, accumulators: Any, func: Any, loop: Any, lanes: int, pixels: int) -> None:
    """The accumulators of a stencil of many taps in registers, inside the tile loop of their stage."""
    # A constant extent of x: with some strides and dilations Halide cannot infer it, and nothing would be unrolled.
    accumulators.compute_at(func, loop).bound_extent(axes.i, lanes).bound_extent(axes.x, pixels)
    accumulators.vectorize(axes.i, lanes).unroll(axes.x)
    update = accumulators.update()
    update.reorder(axes.i, axes.x, *accumulators.rvars(0)).vectorize(axes.i, lanes).unroll(axes.x)
