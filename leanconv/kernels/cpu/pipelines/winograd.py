"""`ops/grouped.py` in Halide for 3×3 kernels of stride 1, by minimal filtering: F(2×2, 3×3) of Lavin & Gray 2016,
arXiv:1509.09308.

    V = Bᵀ d B (4×4 of the padded map, every two pixels)    M[n] = Σ_c U[n, c] · V[n, c]    Y = Aᵀ M A (2×2)

Four outputs of a channel take 16 multiplications in place of 36. A 1×1 beside it is a 3×3 with one tap: of its 16
numbers four are not zero, so it adds its channels to four of the sums, with as many multiplications as it has anyway.

Rounding errors are those of shorter sums: about the direct method's. Differences of neighbours are taken, so what is
infinite makes its outputs NaN; through the 1×1 an infinite number, or NaN, or a rounding error of the largest number
there reaches the other pixels of the 2×2 that it lies in, nothing further.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from leanconv.kernels.cpu.pipelines.element import FLOAT32, image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile, cut, schedule_product, schedule_split_k
from leanconv.kernels.cpu.pipelines.grouped import Sums, Tiles, columns, finished, new_output
from leanconv.kernels.cpu.pipelines.padded import MIXED, Core, mixed, padded_map
from leanconv.ops.grouped import Grouped

Place = tuple[int, int]
# Rows and columns of the 4×4 numbers: where a 1×1 is not zero, and the others.
MIDDLE: tuple[Place, ...] = ((1, 1), (1, 2), (2, 1), (2, 2))
EDGE: tuple[Place, ...] = tuple((i, j) for i in range(4) for j in range(4) if (i, j) not in MIDDLE)
MAX_K = 128  # products of a piece of a sum, see `pieces.LONGEST`: four sums make an output, with errors of their own
# Bᵀ and Aᵀ, a row as what it takes from the four numbers f(0) ... f(3).
_INTO: tuple[Callable[[Any], Any], ...] = (
    lambda f: f(0) - f(2),
    lambda f: f(1) + f(2),
    lambda f: f(2) - f(1),
    lambda f: f(1) - f(3),
)
_OUT_OF: tuple[Callable[[Any], Any], ...] = (lambda f: f(0) + f(1) + f(2), lambda f: f(1) - f(2) - f(3))


@dataclass(frozen=True)
class Part:
    """Sums for some of the 16 numbers: over the group's channels, or (`beside`) over all of them."""

    places: tuple[Place, ...]
    beside: bool = False

    def depth(self, form: Grouped) -> int:
        """Channels of a sum."""
        return sum(form.channels) // (1 if self.beside else form.groups)

    def at_once(self, form: Grouped) -> bool:
        """Whether all channels are transformed before the first product: all groups take them, or they are few."""
        return self.beside or sum(form.channels) <= MIXED


def parts_of(form: Grouped) -> tuple[Part, ...]:
    """The sums of a form, in the order of their packed weights."""
    return (Part(EDGE), Part(MIDDLE, True)) if form.pointwise else (Part(EDGE + MIDDLE),)


NEAR_BYTES = 24 << 10  # of the first-level cache, 32 KiB


def may_be_near(form: Grouped, tile: Tile) -> bool:
    """Whether all that a tile of one group needs stays in the first-level cache: its numbers, sums and weights.

    Once, for one block of channels, and only of groups whose channels lie side by side.
    """
    c, each = sum(form.channels) // form.groups, form.out_channels // form.groups
    held = 4 * 16 * (tile.pixels * (tile.scratch_stride(c) + tile.block) + c * tile.block)
    return each <= tile.block and held <= NEAR_BYTES and not form.pointwise and not mixed(form, FLOAT32)


def pipeline(core: Core, tiles: Tiles) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: as `grouped.pipeline`'s, with packed weights `block n·c blocks·groups` of each part
    in place of taps and 1×1. `tiles.inner` has 2×2 outputs for its pixels, the first of them at a block's first row.

    Either the sums of a block of rows are made for one of the 16 numbers after the other, so that its weights stay in
    the first-level cache; or (`tiles.near`, see `may_be_near`) those of one tile for all 16, so that what is
    transformed stays there too.
    """
    axes, out = Axes(), new_output(core)
    padded, arguments, width = padded_map(axes, core, tiles.inner)
    rows = out.output_buffer().dim(out.dimensions() - 1)
    made = _Transformed(axes, core, tiles, (columns(core.form, width), rows.min(), rows.extent()))
    sums = made.sums(padded, arguments)
    return finished(axes, core, tiles, sums, out, arguments, width)


class _Transformed:
    """The Funcs of one kernel. Numbers n of the 2×2 outputs `ti + to·pixels` lie together, tile by tile of a product:
    addresses within it are constants.
    """

    def __init__(self, axes: Axes, core: Core, tiles: Tiles, size: tuple[Any, Any, Any]) -> None:
        hl, tile = halide(), tiles.inner
        q, self.top, h = size
        self.axes, self.form, self.tile, self.l1_fused = axes, core.form, tile, tiles.l1_fused
        self.across, self.down, self.last = (q + 1) // 2, (h + 1) // 2, self.top + h - 1
        self.ti, self.to, self.n = hl.Var("ti"), hl.Var("to"), hl.Var("n")
        self.tiles_across = (self.across + (tile.pixels - 1)) // tile.pixels
        self.blocks = -(-(core.form.out_channels // core.form.groups) // tile.block)

    def sums(self, padded: Any, arguments: list[Any]) -> Sums:
        """Y, and the loops around it; appends the weights' images and the bias to the arguments."""
        hl, (j, g, x, y), form = halide(), (self.axes.m, self.axes.g, self.axes.x, self.axes.y), self.form
        made: list[tuple[Any, Any, Part]] = []
        where: dict[Place, tuple[Any, int]] = {}
        for part in parts_of(form):
            source = self._into(padded, part)
            products = self._products(source, part, arguments)
            made.append((source, products, part))
            where |= {place: (products, n) for n, place in enumerate(part.places)}
        ti, to = self._tile_of(x, y)

        def number(i: int, k: int) -> Any:
            products, n = where[i, k]
            return products[j, ti, n, to, g]

        lines = [[column(lambda k: row(lambda i: number(i, k))) for column in _OUT_OF] for row in _OUT_OF]  # noqa: B023
        u, v, func = hl.Var("u"), hl.Var("v"), hl.Func("fours")
        func[j, g, u, v, x, y] = hl.mux(u + 2 * v, lines[0] + lines[1])
        func.bound_extent(u, 2).bound_extent(v, 2).unroll(u).unroll(v)
        bias: Any = hl.f32(0.0)
        if form.bias:
            arguments.append(image("bias", 1))
            bias = arguments[-1][j + g * (self.blocks * self.tile.block)]

        def at(j: Any, g: Any, x: Any, y: Any) -> Any:
            value = func[j, g, x % 2, (y - self.top) % 2, x // 2, (y - self.top) // 2]
            return value + bias if form.bias else value

        return Sums(at, partial(self._schedule, func, made), self.last)

    def _whole(self, part: Part) -> bool:
        """Whether all channels are transformed before the first product."""
        return part.at_once(self.form) and not self.l1_fused

    def _tile_of(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Where 2×2 output (x, y) stands; `near`, tiles do not go on in the next row."""
        if self.l1_fused:
            return x % self.tile.pixels, x // self.tile.pixels + y * self.tiles_across
        t = y * self.across + x
        return t % self.tile.pixels, t // self.tile.pixels

    def _place_of(self, ti: Any, to: Any) -> tuple[Any, Any]:
        """The 2×2 output that stands there. What is behind the last one is computed from a place within again."""
        hl, pixels = halide(), self.tile.pixels
        if self.l1_fused:
            x, y = hl.min(to % self.tiles_across * pixels + ti, self.across - 1), to // self.tiles_across
        else:
            t = to * pixels + ti
            x, y = t % self.across, t // self.across
        return x, hl.clamp(y, 0, self.down - 1)

    def _into(self, padded: Any, part: Part) -> Any:
        """V: `c ti n to`, of all channels or, once for each group, of its own: `c ti n to g`."""
        hl, form, tile = halide(), self.form, self.tile
        c, g, ti, n, to = self.axes.c, self.axes.g, self.ti, self.n, self.to
        whole, each = self._whole(part), sum(form.channels) // form.groups
        wide = sum(form.channels) if whole else each
        first, (x, y) = c if whole else c + g * each, self._place_of(ti, to)
        column, row = x * 2 - form.padding[2], y * 2 + self.top - form.padding[0]
        values = [
            _INTO[k](lambda u: _INTO[i](lambda v: padded[first, column + u, row + v]))  # noqa: B023
            for i, k in part.places
        ]
        func = hl.Func("into_beside" if part.beside else "into")
        func[(c, ti, n, to) if whole else (c, ti, n, to, g)] = hl.mux(n, values)
        tail = hl.TailStrategy.RoundUp if wide % tile.lanes == 0 else hl.TailStrategy.Predicate
        func.split(c, self.axes.co, self.axes.ci, tile.lanes, tail).reorder(self.axes.ci, n, self.axes.co, ti, to)
        func.bound_extent(c, wide).bound_extent(n, len(part.places)).bound_extent(ti, tile.pixels)
        func.align_storage(c, tile.scratch_stride(wide)).vectorize(self.axes.ci).unroll(n)
        return func

    def _products(self, source: Any, part: Part, arguments: list[Any]) -> Any:
        """M: `j ti n to g`, a tile of it in registers while channels pass, its weights in the first-level cache."""
        hl, form, tile = halide(), self.form, self.tile
        j, g, ti, n, to = self.axes.m, self.axes.g, self.ti, self.n, self.to
        depth, whole = part.depth(form), self._whole(part)
        name = "beside" if part.beside else "taps"
        weights = weights_image(name, tile.block, depth * len(part.places), FLOAT32)
        arguments.append(weights)
        k = hl.RDom([(0, depth)], f"k_{name}")
        channel = k[0]
        if whole and not part.beside:
            channel = k[0] * form.groups + g if mixed(form, FLOAT32) else k[0] + g * depth
        read = source[(channel, ti, n, to) if whole else (channel, ti, n, to, g)]
        acc, func = hl.Func(f"acc_{name}"), hl.Func(f"products_{name}")
        acc[j, ti, n, to, g] = hl.f32(0.0)
        acc[j, ti, n, to, g] += weights[j % tile.block, k[0] + depth * n, j // tile.block + g * self.blocks] * read
        func[j, ti, n, to, g] = acc[j, ti, n, to, g]
        func.bound_extent(j, tile.block).bound_extent(n, len(part.places)).bound_extent(ti, tile.pixels)
        func.reorder(j, ti, to, n, g).vectorize(j, tile.lanes).unroll(j).unroll(ti)
        if not self.l1_fused:
            func.bound(to, 0, (self.across * self.down + (tile.pixels - 1)) // tile.pixels)
        acc.compute_at(func, to).bound_extent(j, tile.block).vectorize(j, tile.lanes).unroll(j).unroll(ti)
        if depth > MAX_K:
            schedule_split_k(self.axes, acc, 0, [cut(acc, 0, 0, depth, MAX_K)], tile, (n, to, g), ti)
        else:
            schedule_product(self.axes, acc.update(0), acc.rvars(0), tile, False, (n, to, g), ti)
        return func

    def _schedule(self, fours: Any, made: list[tuple[Any, Any, Part]], func: Any, scratch: bool) -> None:
        """The loops of `func`: 2×2 outputs × vectors of a block of channels; groups outermost."""
        hl, axes, tile, tails = halide(), self.axes, self.tile, halide().TailStrategy
        whole = scratch or self.form.out_channels // self.form.groups % tile.block == 0
        yo, yi, ends = hl.Var("yo"), hl.Var("yi"), tails.RoundUp if scratch else tails.PredicateStores
        func.split(axes.m, axes.mo, axes.mi, tile.block, tails.RoundUp if whole else tails.Predicate)
        func.split(axes.mi, axes.mv, axes.mi, tile.lanes).split(axes.x, axes.xo, axes.xi, 2, ends)
        func.split(axes.y, yo, yi, 2, ends)
        if self.l1_fused:
            func.split(axes.xo, axes.xs, axes.xo, tile.pixels, tails.GuardWithIf)
            func.reorder(axes.mi, axes.xi, yi, axes.mv, axes.xo, axes.xs, yo, axes.mo, axes.g)
        else:
            func.reorder(axes.mi, axes.xi, yi, axes.mv, axes.xo, yo, axes.mo, axes.g)
        func.vectorize(axes.mi).unroll(axes.xi).unroll(yi)
        fours.compute_at(func, axes.mv).bound_extent(axes.m, tile.lanes).vectorize(axes.m)
        for source, products, part in made:
            products.compute_at(func, axes.xs if self.l1_fused else axes.mo)
            if self._whole(part):
                source.compute_root()
            else:
                source.compute_at(func, axes.xs if self.l1_fused else axes.g)
