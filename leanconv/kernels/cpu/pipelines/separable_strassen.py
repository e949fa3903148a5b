"""`separable.projected` with seven products in place of eight (`strassen.py`): stencils, then a 1×1 of halves.

Pixels are paired within the block, half of it apart: all blocks are alike. Of every track one half of the channels
stands beside the other; the products' sums go over the tracks. Of both halves one vector of channels goes through its
stencil and into the seven sums at a time: what lies between stays in the first-level cache.
"""

from typing import Any

from leanconv.kernels.cpu.pipelines.depthwise import Track, chain, inside, schedule_inside
from leanconv.kernels.cpu.pipelines.element import FLOAT32, image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile
from leanconv.kernels.cpu.pipelines.separable import Core
from leanconv.kernels.cpu.pipelines.strassen import factors, output, schedule_sums, sums_of

LANES = 16  # of the widest vectors: halves of the channels are whole ones


def takes(core: Core) -> bool:
    """Whether the kernel below can make it: float32, one stencil of each channel, read where the map lies.

    Behind two of them nothing is gained: SPLConv's, 512 to 512 channels of 14×14 and 16×16, were between 4 % faster and
    3 % slower on a Zen 4 core.
    """
    simple = all(
        track.direct and len(track.stencils) == 1 and track.channels % (2 * LANES) == 0 for track in core.tracks
    )
    return simple and not (core.gate or core.element.bytes == 2)


def projected(core: Core, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel of what it `takes`, `m i j x`: i counts halves of the outputs, j those of the block's pixels.

    Arguments: the output as `m x` (whose extent says which rows the tracks make); per track the map, taps and bias,
    then `strassen.pack_products` of its 1×1; at last bias and residual, `m i j x`. The block is whole rows, of each
    half of it at least `tile.pixels`.
    """
    axes, block = Axes(), image("block", 2)
    parts, arguments = [], [block]
    for index, track in enumerate(core.tracks):
        depth = track.channels // 2
        source, taps = _sums(axes, track, block, tile, index)
        weights = factors(f"w{index}", tile.block, depth)
        arguments += [*taps, weights]
        parts.append((source, depth, weights))
    out, rest = output(axes, parts, core, tile)
    return out, arguments + rest


def _sums(axes: Axes, track: Track, block: Any, tile: Tile, index: int) -> tuple[Any, list[Any]]:
    """The seven sums of a track, `c x s`, and the arguments of its stencil."""
    hl, lanes, (i, b), k = halide(), tile.lanes, (axes.i, axes.b), halide().Var("k")
    made, vectors, pixels = chain(axes, track, index, lanes, FLOAT32), track.channels // 2 // lanes, block.dim(1)
    func, stages = hl.Func(f"halves{index}"), []
    func[i, b, k, axes.x] = hl.undef(hl.Float(32))
    rows = pixels.min() // made.w, pixels.extent() // made.w
    for number, columns in enumerate(made.columns):
        loops, lane, column, row = inside(axes, made, columns, track, -1, lanes, f"halves{index}_{number}", block=rows)
        func[lane, b, k, row * made.w + column] = columns.value[lane, b + k * vectors, column, row]
        stages.append(loops)
    start, apart = pixels.min(), pixels.extent() // 2
    sums = sums_of(axes, f"sums{index}", lambda c, i, j, x: func[c % lanes, c // lanes, i, start + x + j * apart])
    schedule_sums(axes, sums, track.channels // 2, tile, by_pixel=False)
    func.compute_at(sums, axes.co).bound(k, 0, 2).bound_extent(i, lanes).vectorize(i, lanes)
    for stage, loops in enumerate(stages):
        schedule_inside(axes, func, stage, loops, [b], None, lanes)
        func.update(stage).reorder(loops.order[-1], k, b)  # one half of the channels, then the other
    return sums, made.arguments
