"""Register-blocked GEMM in Halide: tiles of pixels × output channels, split-K for long sums, output loops.

Channels are innermost everywhere. Scratch and packed weights are as wide as whole vectors, so only accesses to maps
need masks. A kernel computes one block of rows; the runtime picks blocks that fit the L2 cache and hands
them to the threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from leanconv.kernels.cpu.pipelines.bfloat16 import pair_product
from leanconv.kernels.cpu.pipelines.element import ElementType, image
from leanconv.kernels.cpu.pipelines.frontend import halide

# Longest reduction kept in registers (split-K). PyTorch splits too; an unsplit sum exceeds twice its error from about
# 600 terms on (see the tests of split-K).
MAX_K = 256
UNSPLIT_K = 192  # a 1×1 of more input channels is split in two or more


@dataclass(frozen=True)
class Tile:
    """A register tile: the shape of the innermost loops.

    Args:
        pixels: pixels of the tile.
        block: output channels of the tile, a multiple of `lanes`.
        lanes: numbers in a vector.
    """

    pixels: int
    block: int
    lanes: int

    def round_up(self, channels: int) -> int:
        """`channels`, rounded up to whole vectors."""
        return -(-channels // self.lanes) * self.lanes

    def scratch_stride(self, channels: int) -> int:
        """Numbers from one pixel of scratch to the next: an odd number of vectors.

        A power of two would map a column of pixels to few sets of the L1 cache.
        """
        vectors = self.round_up(channels) // self.lanes
        return (vectors + (vectors % 2 == 0 and vectors > 2)) * self.lanes


class Operand(NamedTuple):
    """One term Σ_c weights[m, c] · source[c] of a GEMM: a source `c x y` of so many channels, and packed weights."""

    source: Any
    channels: int
    weights: Any


class Axes:
    """Variables of a kernel and of its loops.

    c: channels; number i of vector b. m: outputs. g: groups. x, y: pixels. Suffix o: blocks; i: inside a block;
    v: vectors; s: strips.
    """

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


def initial_value(axes: Axes, bias: bool, arguments: list[Any], name: str = "bias") -> Any:
    """The value that a sum starts from: its bias, which joins the arguments, or zero."""
    if not bias:
        return halide().f32(0.0)
    arguments.append(image(name, 1))
    return arguments[-1][axes.m]


def projection(
    axes: Axes, operands: Sequence[Operand], start: Any, tile: Tile, element: ElementType, flat: bool = False
) -> Any:
    """The accumulators of a 1×1: start + Σ of the operands; `m x y`, or `m x` if `flat`.

    Sources are read as float32. If products take pairs of channels, sources are `ElementType.from_scratch`.
    """
    hl, m = halide(), axes.m
    pixel = [axes.x] if flat else [axes.x, axes.y]
    func = hl.Func("acc")
    func[(m, *pixel)] = start
    for index, (source, channels, weights) in enumerate(operands):
        if not element.pairs:
            r = hl.RDom([(0, channels)], f"k{index}")
            func[(m, *pixel)] += weights[m % tile.block, r, m // tile.block] * source[(r, *pixel)]
            continue
        packed, pairs = element.widen(weights), channels // 2
        if pairs:
            r = hl.RDom([(0, 2), (0, pairs)], f"k{index}")
            at = (r[0], m % tile.block, r[1], m // tile.block)
            func[(m, *pixel)] += pair_product(packed, at, source, (r[1] * 2 + r[0], *pixel))
        # An odd last channel alone: the number behind it in memory may be a NaN, which times zero is NaN.
        if channels % 2:
            func[(m, *pixel)] += packed[0, m % tile.block, pairs, m // tile.block] * source[(channels - 1, *pixel)]
    return func


def largest_divisor(depth: int, limit: int) -> int:
    """The largest divisor of `depth` that is at most `limit`."""
    return next(length for length in range(min(depth, limit), 0, -1) if depth % length == 0)


def split_k_length(depth: int, limit: int = MAX_K) -> int:
    """Products of one partial sum, if `depth` products are split in two or more of at most `limit`.

    Equal lengths, unless `depth` has no divisor of at least a quarter of the limit: the last one is then shorter.
    """
    limit = min(limit, -(-depth // 2))
    equal = largest_divisor(depth, limit)
    return equal if equal >= min(depth, limit // 4) else -(-depth // -(-depth // limit))


def split_k_loop(func: Any, index: int, place: int, depth: int, limit: int = MAX_K) -> Any:
    """Split one loop of the reduction of an update; returns the outer loop, over the partial sums."""
    loop, outer, inner = func.rvars(index)[place], halide().RVar(f"ko{index}"), halide().RVar(f"ki{index}")
    func.update(index).split(loop, outer, inner, split_k_length(depth, limit))
    return outer


def schedule_split_k(
    axes: Axes, func: Any, index: int, kept: list[Any], tile: Tile, outer: Any = (), pixel: Any = None
) -> Any:
    """Split the reduction of an update with rfactor: the loops `kept` add partial sums, each summed in registers.

    Returns the Func of the partial sums. `pixel` takes the place of x.
    """
    update = func.update(index)
    piece = update.rfactor([(r, halide().Var(f"piece{index}_{place}")) for place, r in enumerate(kept)])
    rest = func.rvars(index)
    schedule_product(axes, func.update(index), rest, tile, False, outer, pixel)
    # One partial sum at a time: its accumulators are a register tile, like those it is added to.
    piece.compute_at(func, rest[0]).bound_extent(axes.m, tile.block)
    # At the end of a row Halide cannot prove the tile's size; a constant size keeps the accumulators in registers.
    piece.bound_storage(axes.x if pixel is None else pixel, tile.pixels)
    piece.vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x if pixel is None else pixel)
    schedule_product(axes, piece.update(0), piece.rvars(0), tile, False, outer, pixel)
    return piece


def schedule_product(
    axes: Axes, update: Any, inner: list[Any], tile: Tile, pairs: bool, outer: Any = (), pixel: Any = None
) -> None:
    """The microkernel: one sum over the loops `inner`, with an unrolled register tile inside each step.

    If products take pairs, the first of the inner loops goes over the two. `pixel` takes the place of x.
    """
    m, x = axes.m, axes.x if pixel is None else pixel
    if pairs and inner:
        # The loop of two is vectorized inside a vector of outputs: Halide turns the atomic sum into vdpbf16ps.
        update.split(m, m, axes.mv, tile.lanes).reorder(inner[0], axes.mv, m, x, *inner[1:], *outer)
        update.atomic().vectorize(inner[0]).vectorize(axes.mv)
    else:
        # Outer-product order: a step loads one vector of weights per block and one number per pixel.
        update.reorder(m, x, *inner, *outer).vectorize(m, tile.lanes)
    update.unroll(m).unroll(x)


def schedule_projection(axes: Axes, func: Any, operands: Sequence[Operand], tile: Tile, element: ElementType) -> None:
    """The accumulators of `projection` in registers: all loops unrolled except the reduction, split-K if it is long."""
    func.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)
    if not element.pairs and sum(operand.channels for operand in operands) > UNSPLIT_K:
        for index, operand in enumerate(operands):
            schedule_split_k(axes, func, index, [split_k_loop(func, index, 0, operand.channels)], tile)
        return
    for index in range(func.num_update_definitions()):
        schedule_product(axes, func.update(index), func.rvars(index), tile, element.pairs)


def schedule_output(axes: Axes, out: Any, width: int, tile: Tile, inner: list[Any], whole_tiles: bool = False) -> None:
    """Loops of a GEMM's output: tiles of `pixels` × `block`.

    `whole_tiles`: there is at least one full tile of pixels; the last tile then overlaps the one before it.
    """
    hl = halide()
    tail = hl.TailStrategy.RoundUp if width % tile.block == 0 else hl.TailStrategy.Predicate
    # ShiftInwards needs no masks, but at least one whole tile.
    pixels = hl.TailStrategy.ShiftInwards if whole_tiles else hl.TailStrategy.PredicateStores
    out.split(axes.m, axes.mo, axes.mi, tile.block, tail).split(axes.x, axes.xo, axes.xi, tile.pixels, pixels)
    # Channel blocks outermost: a panel of weights stays in the cache while all pixels of the block pass.
    out.reorder(axes.mi, axes.xi, axes.xo, *inner, axes.mo).vectorize(axes.mi).unroll(axes.xi)


def bound_output(out: Any, width: int, pixel: int, flat: bool = False) -> None:
    """The output buffer: `width` dense channels, `pixel` numbers from one pixel to the next."""
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, width).set_stride(1)
    buffer.dim(1).set_stride(pixel)
    if not flat:
        buffer.dim(1).set_min(0)
