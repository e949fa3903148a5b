"""What the kernels are made of, in Halide: tiles, copies, projections. Channels innermost.

Scratch and packed weights are as wide as whole vectors, so that only loads from maps and stores to them are masked. A
kernel makes one block of rows, the stencils of it before the projection; the runtime chooses blocks that fit the
second-level cache and hands them to the threads.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.bfloat16 import pair_product
from leanconv.kernels.cpu.pipelines.element import ElementType, image
from leanconv.kernels.cpu.pipelines.frontend import halide


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

    def scratch_stride(self, channels: int) -> int:
        """Numbers from one pixel of scratch to the next: an odd number of vectors.

        A power of two would put a column of pixels into few sets of the first-level cache.
        """
        vectors = self.whole(channels) // self.lanes
        return (vectors + (vectors % 2 == 0 and vectors > 2)) * self.lanes


class Axes:
    """The variables of a kernel: channels c (number i of vector b; outputs m), pixels x y, and their loops."""

    def __init__(self) -> None:
        var = halide().Var
        self.c, self.m, self.x, self.y, self.g = var("c"), var("m"), var("x"), var("y"), var("g")
        self.mo, self.mi, self.mv, self.xo, self.xi = var("mo"), var("mi"), var("mv"), var("xo"), var("xi")
        self.co, self.ci, self.xs, self.i, self.b = var("co"), var("ci"), var("xs"), var("i"), var("b")


def schedule_copy(axes: Axes, func: Any, channels: int, tile: Tile) -> None:
    """A copy of a map: pixel by pixel, vectors of channels; the last vector masked."""
    hl = halide()
    tail = hl.TailStrategy.RoundUp if channels % tile.lanes == 0 else hl.TailStrategy.Predicate
    func.align_storage(axes.c, tile.scratch_stride(channels))
    func.split(axes.c, axes.co, axes.ci, tile.lanes, tail).vectorize(axes.ci)


def start_of(axes: Axes, present: bool, arguments: list[Any], name: str = "bias") -> Any:
    """What a projection starts from: its bias, the next of the arguments, or zero."""
    if not present:
        return halide().f32(0.0)
    arguments.append(image(name, 1))
    return arguments[-1][axes.m]


def projection(
    axes: Axes, parts: list[tuple[Any, int, Any]], start: Any, tile: Tile, element: ElementType, flat: bool = False
) -> Any:
    """start + Σ over the parts (source, channels, `weights_image`) of W·t; `m x y`, or `m x`.

    Sources are read as float32, or are `Storage.factors` where the product takes pairs of channels.
    """
    hl, m = halide(), axes.m
    pixel = [axes.x] if flat else [axes.x, axes.y]
    func = hl.Func("acc")
    func[(m, *pixel)] = start
    for index, (source, channels, weights) in enumerate(parts):
        if not element.pairs:
            r = hl.RDom([(0, channels)], f"k{index}")
            func[(m, *pixel)] += weights[m % tile.block, r, m // tile.block] * source[(r, *pixel)]
            continue
        packed, pairs = element.widen(weights), channels // 2
        if pairs:
            r = hl.RDom([(0, 2), (0, pairs)], f"k{index}")
            at = (r[0], m % tile.block, r[1], m // tile.block)
            func[(m, *pixel)] += pair_product(packed, at, source, (r[1] * 2 + r[0], *pixel))
        if channels % 2:  # the last one alone: what lies behind it may be no number
            func[(m, *pixel)] += packed[0, m % tile.block, pairs, m // tile.block] * source[(channels - 1, *pixel)]
    return func


# Products that are added up in registers, one after the other, at the most: PyTorch's own sums are made in pieces, too,
# and the error of one long sum passes twice theirs from 600 products on (`tests/kernels/test_long_sums.py`). Of a 1×1
# they are two from 200 channels on.
MAX_K = 256
WHOLE = 192  # channels of a 1×1 that are one piece


def equal_piece(depth: int, longest: int) -> int:
    """The longest of equal pieces of `depth` products, at most `longest` each."""
    return next(length for length in range(min(depth, longest), 0, -1) if depth % length == 0)


def piece_of(depth: int, longest: int = MAX_K) -> int:
    """How many of `depth` products are one of two pieces or more: equal ones where that leaves at least a quarter of
    the longest.
    """
    longest = min(longest, -(-depth // 2))
    equal = equal_piece(depth, longest)
    return equal if equal >= min(depth, longest // 4) else -(-depth // -(-depth // longest))


def cut(func: Any, index: int, place: int, depth: int, longest: int = MAX_K) -> Any:
    """Cut a loop of an update's sum into pieces; the loop over them."""
    loop, outer, inner = func.rvars(index)[place], halide().RVar(f"ko{index}"), halide().RVar(f"ki{index}")
    func.update(index).split(loop, outer, inner, piece_of(depth, longest))
    return outer


def schedule_split_k(
    axes: Axes, func: Any, index: int, kept: list[Any], tile: Tile, outer: Any = (), pixel: Any = None
) -> Any:
    """An update's sum piece by piece: the loops over `kept` add what is summed in registers over the other ones.

    Returns the pieces, as a Func.
    """
    update = func.update(index)
    piece = update.rfactor([(r, halide().Var(f"piece{index}_{place}")) for place, r in enumerate(kept)])
    rest = func.rvars(index)
    schedule_product(axes, func.update(index), rest, tile, False, outer, pixel)
    piece.compute_at(func, rest[0]).bound_extent(axes.m, tile.block)
    piece.bound_storage(axes.x if pixel is None else pixel, tile.pixels)  # not known to be so where a row ends
    piece.vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x if pixel is None else pixel)
    schedule_product(axes, piece.update(0), piece.rvars(0), tile, False, outer, pixel)
    return piece


def schedule_product(
    axes: Axes, update: Any, inner: list[Any], tile: Tile, pairs: bool, outer: Any = (), pixel: Any = None
) -> None:
    """One sum of products, over `inner`; of pairs the first of them goes over the two. `pixel`: in place of x."""
    m, x = axes.m, axes.x if pixel is None else pixel
    if pairs and inner:
        update.split(m, m, axes.mv, tile.lanes).reorder(inner[0], axes.mv, m, x, *inner[1:], *outer)
        update.atomic().vectorize(inner[0]).vectorize(axes.mv)
    else:
        update.reorder(m, x, *inner, *outer).vectorize(m, tile.lanes)
    update.unroll(m).unroll(x)


def schedule_projection(
    axes: Axes, func: Any, parts: list[tuple[Any, int, Any]], tile: Tile, element: ElementType
) -> None:
    """Accumulators of `projection` in registers: everything unrolled but the sum, which is made in pieces if long."""
    func.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)
    if not element.pairs and sum(channels for _, channels, _ in parts) > WHOLE:
        for index, (_, channels, _) in enumerate(parts):
            schedule_split_k(axes, func, index, [cut(func, index, 0, channels)], tile)
        return
    for index in range(func.num_update_definitions()):
        schedule_product(axes, func.update(index), func.rvars(index), tile, element.pairs)


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
