"""Depthwise stencils, then a 1×1 by Strassen's algorithm (`strassen.py`): `separable.projected` with seven products.

Pixels are paired inside the block, half a block apart, so all blocks have the same loops. Each track's channels are
split in halves; the products sum over all tracks. One vector of channels of both halves passes the stencil and enters
the seven sums before the next vector does. So the values in between stay in the L1 cache.
"""

from typing import Any

from leanconv.kernels.cpu.pipelines.depthwise import Track, column_loops, stencil_chain
from leanconv.kernels.cpu.pipelines.depthwise_schedule import schedule_columns
from leanconv.kernels.cpu.pipelines.element import FLOAT32, image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Operand, Tile
from leanconv.kernels.cpu.pipelines.separable import SeparableCore
from leanconv.kernels.cpu.pipelines.strassen import input_sums, output, schedule_input_sums, strassen_weights_image

LANES = 16  # of the widest vectors: half of the channels fill whole vectors


def supports(core: SeparableCore) -> bool:
    """Whether the kernel below computes this: float32, and one stencil per channel that needs no copy of the map.

    After two stencils nothing is gained: SPLConv's were between 4 % faster and 3 % slower (512 to 512 channels, 14×14
    and 16×16, one Zen 4 core).
    """
    simple = all(
        track.direct and len(track.stencils) == 1 and track.channels % (2 * LANES) == 0 for track in core.tracks
    )
    return simple and not core.gate and core.element == FLOAT32


def projected(core: SeparableCore, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel `m i j x`, for a core that it `supports`: i is the half of the outputs, j that of the block's pixels.

    Arguments: the output as `m x` (its extent says which rows the tracks compute); per track the map, taps and bias,
    then `packing.pack_strassen` of its 1×1; last bias and residual, `m i j x`. A block is whole rows; each half of it
    has at least `tile.pixels` pixels.
    """
    axes, block = Axes(), image("block", 2)
    operands, arguments = [], [block]
    for index, track in enumerate(core.tracks):
        depth = track.channels // 2
        source, taps = _stencil_sums(axes, track, block, tile, index)
        weights = strassen_weights_image(f"w{index}", tile.block, depth)
        arguments += [*taps, weights]
        operands.append(Operand(source, depth, weights))
    out, rest = output(axes, operands, core, tile)
    return out, arguments + rest


def _stencil_sums(axes: Axes, track: Track, block: Any, tile: Tile, index: int) -> tuple[Any, list[Any]]:
    """The input sums of a track, `c x s`, and the arguments of its stencil."""
    hl, lanes, (i, b), k = halide(), tile.lanes, (axes.i, axes.b), halide().Var("k")
    chain = stencil_chain(axes, track, index, lanes, FLOAT32)
    vectors, pixels = track.channels // 2 // lanes, block.dim(1)
    func, stages = hl.Func(f"halves{index}"), []
    func[i, b, k, axes.x] = hl.undef(hl.Float(32))
    rows = pixels.min() // chain.w, pixels.extent() // chain.w
    for number, columns in enumerate(chain.columns):
        name = f"halves{index}_{number}"
        loops, lane, column, row = column_loops(axes, chain, columns, track, -1, lanes, name, block=rows)
        func[lane, b, k, row * chain.w + column] = columns.value[lane, b + k * vectors, column, row]
        stages.append(loops)
    start, apart = pixels.min(), pixels.extent() // 2
    sums = input_sums(axes, f"sums{index}", lambda c, i, j, x: func[c % lanes, c // lanes, i, start + x + j * apart])
    schedule_input_sums(axes, sums, track.channels // 2, tile, by_pixel=False)
    # The stencil's result of one vector of channels (k: of both halves) is all that lies between stencil and sums.
    func.compute_at(sums, axes.co).bound(k, 0, 2).bound_extent(i, lanes).vectorize(i, lanes)
    for stage, loops in enumerate(stages):
        schedule_columns(axes, func, stage, loops, [b], None, lanes)
        func.update(stage).reorder(loops.order[-1], k, b)  # all columns of one half of the channels, then the other
    return sums, chain.arguments
