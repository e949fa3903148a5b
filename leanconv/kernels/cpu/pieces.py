"""What the kernels are made of, in Halide: padded copies, stencils, projections. Channels innermost.

Scratch and packed weights are as wide as whole vectors, so that only loads from maps and stores to them are masked. A
kernel makes one block of rows, each stage for the whole block before the next begins; the runtime chooses blocks that
fit the second-level cache and hands them to the threads. (Rows that slide through all stages, strip by strip, were
slower at every shape tried, by 1.1 to 1.6 times on a Zen 4 core, and took twice as long to compile.)
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.activations import activate
from leanconv.kernels.cpu.frontend import halide
from leanconv.kernels.cpu.storage import Storage
from leanconv.ops.forms import Sides, Stencil


@dataclass(frozen=True)
class Tile:
    """The shape of the innermost loops.

    Args:
        pixels: pixels of one register tile.
        block: output channels of one register tile, a multiple of `lanes`.
        lanes: numbers in a vector.
    """

    pixels: int
    block: int
    lanes: int

    def whole(self, channels: int) -> int:
        """`channels`, rounded up to whole vectors."""
        return -(-channels // self.lanes) * self.lanes

    def storage(self, channels: int) -> int:
        """Numbers from one pixel of scratch to the next: an odd number of vectors.

        A power of two would put a column of pixels into few sets of the first-level cache.
        """
        vectors = self.whole(channels) // self.lanes
        return (vectors + (vectors % 2 == 0 and vectors > 2)) * self.lanes


MOST_WRITTEN_OUT = 11  # taps of a stencil
STRIP = 64  # pixels of a row whose stencils are made for all rows of a block before the next ones


def size_after(stencil: Stencil, h: Any, w: Any) -> tuple[Any, Any]:
    """Expressions of the height and width after a stencil."""
    (r, s), (sh, sw), (dh, dw) = stencil.kernel, stencil.stride, stencil.dilation
    top, bottom, left, right = stencil.padding
    return (h + (top + bottom - dh * (r - 1) - 1)) // sh + 1, (w + (left + right - dw * (s - 1) - 1)) // sw + 1


WHOLE = 16  # channels of the widest vector


class Axes:
    """The variables of a kernel: channels c (outputs m), pixels x y, and the loops that they are split into."""

    def __init__(self) -> None:
        var = halide().Var
        self.c, self.m, self.x, self.y, self.g = var("c"), var("m"), var("x"), var("y"), var("g")
        self.mo, self.mi, self.mv, self.xo, self.xi = var("mo"), var("mi"), var("mv"), var("xo"), var("xi")
        self.co, self.ci, self.xs, self.xu, self.xv = var("co"), var("ci"), var("xs"), var("xu"), var("xv")


def padded(axes: Axes, source: Any, h: Any, w: Any, name: str, sides: Sides, channels: int) -> Any:
    """`source` with zeros around. Of its channels no more than it has are read: see `copied`."""
    hl, (x, y) = halide(), (axes.x, axes.y)
    c = axes.c if channels % WHOLE == 0 else hl.RDom([(0, channels)], f"{name}_channels")[0]
    value = source[c, hl.clamp(hl.likely(x), 0, w - 1), hl.clamp(y, 0, h - 1)]
    func = zeros_around(axes, value, h, w, name, sides, c)
    copied(func, channels).never_partition([axes.y])  # columns alone: a loop without the clamps, and one for each end
    return func


def copied(func: Any, channels: int) -> Any:
    """The stage of a copy that reads the map.

    What uses the copy makes whole vectors of channels, whose surplus nobody keeps. Where a map has no whole vectors an
    update copies the channels that there are: the memory behind its last pixel may not be there.
    """
    return func if channels % WHOLE == 0 else func.update(0)


def zeros_around(
    axes: Axes, value: Any, h: Any, w: Any, name: str, sides: Sides, channel: Any = None, stored: Any = None
) -> Any:
    """`value` inside its map, zeros beyond it as far as `sides` reach; `stored`: its type, if that is not float32.

    Columns are overwritten with zeros afterwards: a mask for every pixel would cost a third of a 3×3 stencil.
    """
    hl, (c, x, y) = halide(), (axes.c, axes.x, axes.y)
    top, bottom, left, right = sides
    func = hl.Func(name)
    if channel is None or channel is c:
        func[c, x, y] = hl.select((y >= 0) & (y < h), value, 0.0) if top or bottom else value
    else:
        func[c, x, y] = hl.undef(stored or hl.Float(32))
        func[channel, x, y] = hl.select((y >= 0) & (y < h), value, 0.0) if top or bottom else value
    for count, start in ((left, -left), (right, w)):
        if count:
            r = hl.RDom([(start, count)], f"{name}_side")
            func[c, r, y] = 0.0
    return func


def clamped(axes: Axes, source: Any, h: Any, w: Any, name: str) -> Any:
    """`source` with its border repeated: for surplus pixels of a tile, whose results nobody keeps."""
    hl, (c, x, y) = halide(), (axes.c, axes.x, axes.y)
    func = hl.Func(name)
    func[c, x, y] = source[c, hl.clamp(x, 0, w - 1), hl.clamp(y, 0, h - 1)]
    return func


def stencil(axes: Axes, source: Any, form: Stencil, taps: Any, bias: Any, name: str) -> tuple[Any, Any]:
    """One depthwise convolution and its activation, as an expression; `taps` is `c r·s`.

    Few taps are written out. Of many only a row is, summed over the rows in accumulators (the second result, else
    None): LLVM takes seconds for 49 taps of 8 pixels, and its code is half as fast.
    """
    hl, (c, x, y) = halide(), (axes.c, axes.x, axes.y)
    (r, s), (sh, sw), (dh, dw), (top, _, left, _) = form.kernel, form.stride, form.dilation, form.padding

    def row(i: Any) -> Any:
        total: Any = None
        for j in range(s):
            value = source[c, x * sw + (j * dw - left), y * sh + (i * dh - top)]
            if not form.identity:
                value = value * taps[c, i * s + j]
            total = value if total is None else total + value
        return total

    if r * s <= MOST_WRITTEN_OUT or r == 1:
        total = None if bias is None else bias[c]
        for i in range(r):
            total = row(i) if total is None else total + row(i)
        return activate(form.activation, total, c, x, y), None
    sums = hl.Func(f"{name}_sums")
    sums[c, x, y] = hl.f32(0.0) if bias is None else bias[c]
    sums[c, x, y] += row(hl.RDom([(0, r)], f"{name}_rows")[0])
    return activate(form.activation, sums[c, x, y], c, x, y), sums


def schedule_sums(axes: Axes, sums: Any, func: Any, loop: Any, tile: Tile) -> None:
    """The accumulators of a stencil of many taps, in registers, within the tile loop of their stage."""
    sums.compute_at(func, loop).bound_extent(axes.c, tile.lanes).vectorize(axes.c, tile.lanes).unroll(axes.x)
    update = sums.update()
    update.reorder(axes.c, axes.x, *sums.rvars(0)).vectorize(axes.c, tile.lanes).unroll(axes.x)


def schedule_copy(axes: Axes, func: Any, channels: int, tile: Tile, stage: Any = None) -> None:
    """A padded copy: pixel by pixel, vectors of channels; the last vector masked."""
    hl = halide()
    tail = hl.TailStrategy.RoundUp if channels % tile.lanes == 0 else hl.TailStrategy.Predicate
    func.align_storage(axes.c, tile.storage(channels))
    if stage is None or stage is func:
        func.split(axes.c, axes.co, axes.ci, tile.lanes, tail).vectorize(axes.ci)
    else:
        (own,), (outer, inner) = func.rvars(0), (halide().RVar("ro"), halide().RVar("ri"))
        stage.split(own, outer, inner, tile.lanes, hl.TailStrategy.Predicate).vectorize(inner)
    _schedule_sides(axes, func, channels, tile, first=0 if stage is None or stage is func else 1)


def _schedule_sides(axes: Axes, func: Any, channels: int, tile: Tile, first: int = 0) -> None:
    hl = halide()
    tail = hl.TailStrategy.RoundUp if channels % tile.lanes == 0 else hl.TailStrategy.Predicate
    for index in range(first, func.num_update_definitions()):
        update = func.update(index)
        update.split(axes.c, axes.co, axes.ci, tile.lanes, tail).vectorize(axes.ci)


def schedule_stencil(axes: Axes, func: Any, channels: int, tile: Tile, sums: Any, wide: bool) -> None:
    """A stencil: its taps stay in registers while several pixels of one vector of channels are made together.

    Strips of columns where rows are long (`wide`), and all rows of one vector of channels before the next: what the
    rows share is in the first-level cache.
    """
    hl = halide()
    wide = wide and sums is None  # the end of a strip would leave the accumulators without a fixed size
    func.align_storage(axes.c, tile.storage(channels))
    func.bound_extent(axes.c, tile.whole(channels))
    func.split(axes.c, axes.co, axes.ci, tile.lanes)
    if wide:
        func.split(axes.x, axes.xs, axes.xo, STRIP, hl.TailStrategy.GuardWithIf)
    func.split(axes.xo if wide else axes.x, axes.xu, axes.xv, min(8, tile.pixels), hl.TailStrategy.RoundUp)
    func.reorder(axes.ci, axes.xv, axes.xu, axes.y, axes.co, *([axes.xs] if wide else []))
    func.vectorize(axes.ci).unroll(axes.xv)
    if sums is not None:
        schedule_sums(axes, sums, func, axes.xu, tile)
    _schedule_sides(axes, func, channels, tile)


def projection(
    axes: Axes, parts: list[tuple[Any, int, Any]], start: Any, tile: Tile, storage: Storage, flat: bool = False
) -> Any:
    """start + Σ over the parts (source, channels, `weights_image`) of W·t; `m x y`, or `m x`.

    Sources are read as float32, or are `Storage.factors` where the product takes pairs of channels.
    """
    hl, m = halide(), axes.m
    pixel = [axes.x] if flat else [axes.x, axes.y]
    func = hl.Func("acc")
    func[(m, *pixel)] = start
    for index, (source, channels, weights) in enumerate(parts):
        if not storage.pairs:
            r = hl.RDom([(0, channels)], f"k{index}")
            func[(m, *pixel)] += weights[m % tile.block, r, m // tile.block] * source[(r, *pixel)]
            continue
        packed, pairs = storage.read(weights), channels // 2
        if pairs:
            r = hl.RDom([(0, 2), (0, pairs)], f"k{index}")
            weight = packed.factor(r[0], m % tile.block, r[1], m // tile.block)
            func[(m, *pixel)] += weight * source.factor(r[1] * 2 + r[0], *pixel)
        if channels % 2:  # the last one alone: what lies behind it may be no number
            func[(m, *pixel)] += packed[0, m % tile.block, pairs, m // tile.block] * source[(channels - 1, *pixel)]
    return func


def schedule_projection(axes: Axes, func: Any, tile: Tile, storage: Storage) -> None:
    """Accumulators in registers: everything unrolled but the sum."""
    func.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)
    for index in range(func.num_update_definitions()):
        schedule_product(axes, func.update(index), func.rvars(index), tile, storage.pairs)


def schedule_product(axes: Axes, update: Any, inner: list[Any], tile: Tile, pairs: bool, outer: Any = ()) -> None:
    """One sum of products, over `inner`; of pairs the first of them goes over the two."""
    m, x = axes.m, axes.x
    if pairs and inner:
        update.split(m, m, axes.mv, tile.lanes).reorder(inner[0], axes.mv, m, x, *inner[1:], *outer)
        update.atomic().vectorize(inner[0]).vectorize(axes.mv)
    else:
        update.reorder(m, x, *inner, *outer).vectorize(m, tile.lanes)
    update.unroll(m).unroll(x)


def schedule_output(axes: Axes, out: Any, width: int, tile: Tile, inner: list[Any], whole_tiles: bool = False) -> None:
    """Tiles of `pixels` × `block`, channels outermost: a panel of weights stays in the cache while pixels pass.

    `whole_tiles`: there is at least one full tile of pixels; then the last one overlaps the one before it.
    """
    hl = halide()
    tail = hl.TailStrategy.RoundUp if width % tile.block == 0 else hl.TailStrategy.Predicate
    pixels = hl.TailStrategy.ShiftInwards if whole_tiles else hl.TailStrategy.PredicateStores
    out.split(axes.m, axes.mo, axes.mi, tile.block, tail).split(axes.x, axes.xo, axes.xi, tile.pixels, pixels)
    out.reorder(axes.mi, axes.xi, axes.xo, *inner, axes.mo).vectorize(axes.mi).unroll(axes.xi)


def bound_output(out: Any, width: int, pixel: int, flat: bool = False) -> None:
    """The output's buffer: `width` dense channels, `pixel` numbers from one pixel to the next."""
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, width).set_stride(1)
    buffer.dim(1).set_stride(pixel)
    if not flat:
        buffer.dim(1).set_min(0)
