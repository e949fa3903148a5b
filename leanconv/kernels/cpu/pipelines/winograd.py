"""Winograd F(2×2, 3×3) in Halide, for the 3×3 group convolutions of stride 1 of `ops/grouped.py`.

    V = Bᵀ d B (4×4 of the padded map, every two pixels)    M[n] = Σ_c U[n, c] · V[n, c]    Y = Aᵀ M A (2×2)

Four outputs of a channel take 16 multiplications instead of 36. A parallel 1×1 is a 3×3 with one tap: four of its 16
transformed numbers are not zero. It adds its channels to those four sums, at no more multiplications than by itself.

Rounding errors are about those of the direct sum. The transform subtracts neighbours, so an infinity gives NaN. Through
the 1×1, an infinity, a NaN or the rounding error of a huge number reaches only its own 2×2 pixels.
Source: Lavin & Gray 2016, arXiv:1509.09308.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from leanconv.kernels.cpu.pipelines.element import FLOAT32, image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile, schedule_product, schedule_split_k, split_k_loop
from leanconv.kernels.cpu.pipelines.grouped import GroupedTiles, Sums, finish, new_output, output_width
from leanconv.kernels.cpu.pipelines.padded import FEW_CHANNELS, GroupedCore, keeps_interleaving, padded_map
from leanconv.ops.grouped import Grouped

Place = tuple[int, int]
# Rows and columns of the 4×4 transformed numbers: where a 1×1 is not zero, and the others.
MIDDLE: tuple[Place, ...] = ((1, 1), (1, 2), (2, 1), (2, 2))
EDGE: tuple[Place, ...] = tuple((i, j) for i in range(4) for j in range(4) if (i, j) not in MIDDLE)
WINOGRAD_MAX_K = 128  # half of `gemm.MAX_K`: an output adds several of these sums, each with its own rounding error
# Bᵀ and Aᵀ; each function is a row, applied to the four numbers f(0) ... f(3).
INPUT_TRANSFORM: tuple[Callable[[Any], Any], ...] = (
    lambda f: f(0) - f(2),
    lambda f: f(1) + f(2),
    lambda f: f(2) - f(1),
    lambda f: f(1) - f(3),
)
OUTPUT_TRANSFORM: tuple[Callable[[Any], Any], ...] = (lambda f: f(0) + f(1) + f(2), lambda f: f(1) - f(2) - f(3))


@dataclass(frozen=True)
class Part:
    """Sums for some of the 16 transformed numbers: over one group's channels, or over those of `all_groups`."""

    places: tuple[Place, ...]
    all_groups: bool = False

    def depth(self, form: Grouped) -> int:
        """Channels of a sum."""
        return sum(form.channels) // (1 if self.all_groups else form.groups)

    def at_once(self, form: Grouped) -> bool:
        """Whether all channels are transformed before the first product: every group reads them, or they are few."""
        return self.all_groups or sum(form.channels) <= FEW_CHANNELS


def parts_of(form: Grouped) -> tuple[Part, ...]:
    """The sums of a form, in the order of their packed weights."""
    return (Part(EDGE), Part(MIDDLE, True)) if form.pointwise else (Part(EDGE + MIDDLE),)


def fits_l1(form: Grouped, tile: Tile, l1: int) -> bool:
    """Whether the transformed input, sums and weights of one tile take at most 3/4 of an L1 cache of `l1` bytes.

    False unless a group has one block of outputs and contiguous channels.
    """
    c, each = sum(form.channels) // form.groups, form.out_channels // form.groups
    held = 4 * 16 * (tile.pixels * (tile.scratch_stride(c) + tile.block) + c * tile.block)
    plain = not form.pointwise and not keeps_interleaving(form, FLOAT32)
    return each <= tile.block and held <= 3 * l1 // 4 and plain


def pipeline(core: GroupedCore, tiles: GroupedTiles) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: those of `grouped.pipeline`, with transformed weights `block n·c blocks·groups`.

    Each part has its own weights, instead of taps and 1×1. A pixel of `tiles.inner` is a 2×2 of outputs; the first
    begins at the block's first row.

    There are two schedules. Plain: a whole block of rows for one of the 16 numbers after the other. The weights of that
    number stay in the L1 cache. `tiles.l1_fused` (see `fits_l1`): all 16 numbers of one tile. Its transformed input
    stays there too.
    """
    axes, out = Axes(), new_output(core)
    padded, arguments, width = padded_map(axes, core, tiles.inner)
    rows = out.output_buffer().dim(out.dimensions() - 1)
    transformed = _Transformed(axes, core, tiles, (output_width(core.form, width), rows.min(), rows.extent()))
    sums = transformed.sums(padded, arguments)
    return finish(axes, core, tiles, sums, out, arguments, width)


class _Transformed:
    """The Funcs of one kernel. Output 2×2 number t is lane `ti` of tile `to`, t = ti + to·pixels.

    The 16 elements n of a transformed 4×4 tile are contiguous, so addresses inside it are constants.
    """

    def __init__(self, axes: Axes, core: GroupedCore, tiles: GroupedTiles, size: tuple[Any, Any, Any]) -> None:
        hl, tile = halide(), tiles.inner
        q, self.top, h = size
        self.axes, self.form, self.tile, self.l1_fused = axes, core.form, tile, tiles.l1_fused
        self.across, self.down, self.last = (q + 1) // 2, (h + 1) // 2, self.top + h - 1
        self.ti, self.to, self.n = hl.Var("ti"), hl.Var("to"), hl.Var("n")
        self.tiles_across = (self.across + (tile.pixels - 1)) // tile.pixels
        self.blocks = -(-(core.form.out_channels // core.form.groups) // tile.block)

    def sums(self, padded: Any, arguments: list[Any]) -> Sums:
        """Y and its schedule; appends the weights and the bias to the arguments."""
        hl, (j, g, x, y), form = halide(), (self.axes.m, self.axes.g, self.axes.x, self.axes.y), self.form
        stages: list[tuple[Any, Any, Part]] = []
        where: dict[Place, tuple[Any, int]] = {}
        for part in parts_of(form):
            source = self._transform_input(padded, part)
            products = self._multiply(source, part, arguments)
            stages.append((source, products, part))
            where |= {place: (products, n) for n, place in enumerate(part.places)}
        ti, to = self._tile_of(x, y)

        def number(i: int, k: int) -> Any:
            products, n = where[i, k]
            return products[j, ti, n, to, g]

        lines = [
            [column(lambda k: row(lambda i: number(i, k))) for column in OUTPUT_TRANSFORM]  # noqa: B023
            for row in OUTPUT_TRANSFORM
        ]
        u, v, func = hl.Var("u"), hl.Var("v"), hl.Func("outputs2x2")
        # In this order for every tile: LLVM may choose another one for each.
        func[j, g, u, v, x, y] = hl.mux(u + 2 * v, [hl.strict_float(value) for value in lines[0] + lines[1]])
        # The four outputs share their 16 inputs: computed together, each product is loaded once.
        func.bound_extent(u, 2).bound_extent(v, 2).unroll(u).unroll(v)
        bias: Any = hl.f32(0.0)
        if form.bias:
            arguments.append(image("bias", 1))
            bias = arguments[-1][j + g * (self.blocks * self.tile.block)]

        def at(j: Any, g: Any, x: Any, y: Any) -> Any:
            value = func[j, g, x % 2, (y - self.top) % 2, x // 2, (y - self.top) // 2]
            return value + bias if form.bias else value

        return Sums(at, partial(self._schedule, func, stages), self.last)

    def _all_at_once(self, part: Part) -> bool:
        """Whether all channels are transformed before the first product."""
        return part.at_once(self.form) and not self.l1_fused

    def _tile_of(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Lane and tile of the 2×2 output (x, y). If L1-fused, a tile does not continue in the next row."""
        if self.l1_fused:
            return x % self.tile.pixels, x // self.tile.pixels + y * self.tiles_across
        t = y * self.across + x
        return t % self.tile.pixels, t // self.tile.pixels

    def _place_of(self, ti: Any, to: Any) -> tuple[Any, Any]:
        """The 2×2 output of a lane and tile. Lanes behind the last output repeat one that exists."""
        hl, pixels = halide(), self.tile.pixels
        if self.l1_fused:
            x, y = hl.min(to % self.tiles_across * pixels + ti, self.across - 1), to // self.tiles_across
        else:
            t = to * pixels + ti
            x, y = t % self.across, t // self.across
        return x, hl.clamp(y, 0, self.down - 1)

    def _transform_input(self, padded: Any, part: Part) -> Any:
        """V: `c ti n to` (all channels at once) or `c ti n to g` (one group at a time)."""
        hl, form, tile = halide(), self.form, self.tile
        c, g, ti, n, to = self.axes.c, self.axes.g, self.ti, self.n, self.to
        whole, each = self._all_at_once(part), sum(form.channels) // form.groups
        wide = sum(form.channels) if whole else each
        first, (x, y) = c if whole else c + g * each, self._place_of(ti, to)
        column, row = x * 2 - form.padding[2], y * 2 + self.top - form.padding[0]
        values = [
            INPUT_TRANSFORM[k](lambda u: INPUT_TRANSFORM[i](lambda v: padded[first, column + u, row + v]))  # noqa: B023
            for i, k in part.places
        ]
        func = hl.Func("transformed_all" if part.all_groups else "transformed")
        func[(c, ti, n, to) if whole else (c, ti, n, to, g)] = hl.mux(n, values)
        # All numbers n of a vector of channels together: each pixel of the 4×4 is loaded once.
        tail = hl.TailStrategy.RoundUp if wide % tile.lanes == 0 else hl.TailStrategy.Predicate
        func.split(c, self.axes.co, self.axes.ci, tile.lanes, tail).reorder(self.axes.ci, n, self.axes.co, ti, to)
        func.bound_extent(c, wide).bound_extent(n, len(part.places)).bound_extent(ti, tile.pixels)
        func.align_storage(c, tile.scratch_stride(wide)).vectorize(self.axes.ci).unroll(n)
        return func

    def _multiply(self, source: Any, part: Part, arguments: list[Any]) -> Any:
        """M: `j ti n to g`, one register tile at a time while the channels pass."""
        hl, form, tile = halide(), self.form, self.tile
        j, g, ti, n, to = self.axes.m, self.axes.g, self.ti, self.n, self.to
        depth, whole = part.depth(form), self._all_at_once(part)
        name = "all" if part.all_groups else "taps"
        weights = weights_image(name, tile.block, depth * len(part.places), FLOAT32)
        arguments.append(weights)
        k = hl.RDom([(0, depth)], f"k_{name}")
        channel = k[0]
        if whole and not part.all_groups:
            channel = k[0] * form.groups + g if keeps_interleaving(form, FLOAT32) else k[0] + g * depth
        read = source[(channel, ti, n, to) if whole else (channel, ti, n, to, g)]
        acc, func = hl.Func(f"acc_{name}"), hl.Func(f"products_{name}")
        acc[j, ti, n, to, g] = hl.f32(0.0)
        acc[j, ti, n, to, g] += weights[j % tile.block, k[0] + depth * n, j // tile.block + g * self.blocks] * read
        func[j, ti, n, to, g] = acc[j, ti, n, to, g]
        func.bound_extent(j, tile.block).bound_extent(n, len(part.places)).bound_extent(ti, tile.pixels)
        # n outside the tiles: the weights of one number stay in the L1 cache while all tiles pass.
        func.reorder(j, ti, to, n, g).vectorize(j, tile.lanes).unroll(j).unroll(ti)
        if not self.l1_fused:
            func.bound(to, 0, (self.across * self.down + (tile.pixels - 1)) // tile.pixels)
        # A Func of its own for the accumulators: they stay in registers, and `func` is stored once.
        acc.compute_at(func, to).bound_extent(j, tile.block).vectorize(j, tile.lanes).unroll(j).unroll(ti)
        if depth > WINOGRAD_MAX_K:
            outer = split_k_loop(acc, 0, 0, depth, WINOGRAD_MAX_K)
            schedule_split_k(self.axes, acc, 0, [outer], tile, (n, to, g), ti)
        else:
            schedule_product(self.axes, acc.update(0), acc.rvars(0), tile, False, (n, to, g), ti)
        return func

    def _schedule(self, outputs: Any, stages: list[tuple[Any, Any, Part]], func: Any, scratch: bool) -> None:
        """The loops of `func`: 2×2 outputs × vectors of a block of channels; groups outermost."""
        hl, axes, tile, tails = halide(), self.axes, self.tile, halide().TailStrategy
        whole = scratch or self.form.out_channels // self.form.groups % tile.block == 0
        # Scratch has room for whole 2×2 outputs; a map of odd size masks its stores.
        yo, yi, ends = hl.Var("yo"), hl.Var("yi"), tails.RoundUp if scratch else tails.PredicateStores
        func.split(axes.m, axes.mo, axes.mi, tile.block, tails.RoundUp if whole else tails.Predicate)
        func.split(axes.mi, axes.mv, axes.mi, tile.lanes).split(axes.x, axes.xo, axes.xi, 2, ends)
        func.split(axes.y, yo, yi, 2, ends)
        if self.l1_fused:
            # A loop over register tiles, inside which all 16 numbers are transformed, multiplied and added up.
            func.split(axes.xo, axes.xs, axes.xo, tile.pixels, tails.GuardWithIf)
            func.reorder(axes.mi, axes.xi, yi, axes.mv, axes.xo, axes.xs, yo, axes.mo, axes.g)
        else:
            func.reorder(axes.mi, axes.xi, yi, axes.mv, axes.xo, yo, axes.mo, axes.g)
        func.vectorize(axes.mi).unroll(axes.xi).unroll(yi)
        outputs.compute_at(func, axes.mv).bound_extent(axes.m, tile.lanes).vectorize(axes.m)
        for source, products, part in stages:
            products.compute_at(func, axes.xs if self.l1_fused else axes.mo)
            if self._all_at_once(part):
                source.compute_root()
            else:
                source.compute_at(func, axes.xs if self.l1_fused else axes.g)
