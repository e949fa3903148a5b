"""`ops/grouped.py` in Halide: padded copy, then the group convolution (and the 1×1 beside it) straight from it.

Channels are taken group by group throughout; where they are dealt to the groups like cards, the copy and the stores put
them in order. A 1×1 that follows reads the result from scratch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import Widened, image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    MAX_K,
    Axes,
    Tile,
    cut,
    projection,
    schedule_output,
    schedule_product,
    schedule_projection,
    schedule_split_k,
    start_of,
)
from leanconv.kernels.cpu.pipelines.padded import Core, mixed, padded_map, padded_planes, spread
from leanconv.ops.grouped import Grouped
from leanconv.spec import out_length


@dataclass(frozen=True)
class Tiles:
    """The tiles of the group convolution and of the 1×1 that follows (the same where none does).

    `near`: see `winograd.pipeline`.
    """

    inner: Tile
    outer: Tile
    l1_fused: bool = False


@dataclass(frozen=True)
class Sums:
    """What a method of convolution makes, before bias-free endings such as a residual: `at(j, g, x, y)` is an Expr.

    Args:
        at: channel j of group g at a pixel.
        schedule: called with the Func that reads it there and whether that is scratch, makes its loops.
        last: the last row that may be read from a residual, where the loops go beyond it; else None.
    """

    at: Callable[[Any, Any, Any, Any], Any]
    schedule: Callable[[Any, bool], None]
    last: Any = None


def pipeline(core: Core, tiles: Tiles) -> tuple[Any, list[Any]]:
    """The kernel and its arguments.

    Inputs `c x y`; packed taps `block c·r·s blocks·groups`; the packed 1×1 beside it `block c blocks·groups`, its
    channels group by group; the bias, whole blocks per group; the packed 1×1 that follows, per group; its bias; the
    residual. The output is `j g x y` (channel j of group g), or `m x y` where a 1×1 follows.
    """
    axes = Axes()
    padded, arguments, width = padded_map(axes, core, tiles.inner) if core.pixels else padded_planes(axes, core)
    acc, extra = _convolution(axes, core, padded, arguments[0], tiles.inner)
    sums = Sums(lambda j, g, x, y: acc[j, g, x, y], partial(_schedule_groups, axes, acc, core.form, tiles.inner))
    return finished(axes, core, tiles, sums, new_output(core), arguments + extra, width)


def new_output(core: Core) -> Any:
    """The kernel's output, not yet defined."""
    return halide().Func(core.element.type, 4 if core.form.project is None else 3, "out")


def columns(form: Grouped, width: Any) -> Any:
    """Columns of the output, of an input of that width."""
    return out_length(width, form.kernel[1], form.stride[1], form.dilation[1], form.padding[2] + form.padding[3])


def finished(
    axes: Axes, core: Core, tiles: Tiles, sums: Sums, out: Any, arguments: list[Any], width: Any
) -> tuple[Any, list[Any]]:
    """The kernel from its sums on: the residual and the activation, or first the 1×1 that follows."""
    hl, form, element = halide(), core.form, core.element
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    q, each = columns(form, width), form.out_channels // form.groups
    if form.project is not None:
        return _projected(axes, core, tiles, sums, out, arguments, q)
    value = sums.at(j, g, x, y)
    if core.residual:
        residual = image("residual", 4, element)
        residual.dim(0).set_stride(form.groups if form.interleaved else 1)
        residual.dim(2).set_stride(core.residual)
        arguments.append(residual)
        row = y if sums.last is None else hl.min(y, sums.last)
        value = value + element.read(residual)[j, g, hl.min(x, q - 1), row]
    out[j, g, x, y] = element.narrow(activate(form.activation, value, j, g, x, y))
    sums.schedule(out, False)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, each).set_stride(form.groups if form.interleaved else 1)
    buffer.dim(1).set_bounds(0, form.groups).set_stride(1 if form.interleaved else each)
    buffer.dim(2).set_min(0).set_stride(form.out_channels)
    if core.columns:
        buffer.dim(2).set_bounds(0, tiles.inner.pixels)
    return out, arguments


def _projected(
    axes: Axes, core: Core, tiles: Tiles, sums: Sums, out: Any, arguments: list[Any], q: Any
) -> tuple[Any, list[Any]]:
    hl, form, element, inner = halide(), core.form, core.element, halide().Func("inner")
    j, g, x, y, m = axes.m, axes.g, axes.x, axes.y, axes.m
    inner[j, g, x, y] = element.factor(activate(form.inner_activation, sums.at(j, g, x, y), j, g, x, y))
    inner.compute_root()
    sums.schedule(inner, True)
    each, parts = form.out_channels // form.groups, []
    for index in range(form.groups):
        weights = weights_image(f"project{index}", tiles.outer.block, each, element)
        arguments.append(weights)
        parts.append((element.factors(_Slice(inner, index)), each, weights))
    start = start_of(axes, form.project_bias, arguments, "project_bias")
    final = projection(axes, parts, start, tiles.outer, element)
    value = final[m, x, y]
    if core.residual:
        residual = map_image("residual", core.residual, element)
        arguments.append(residual)
        value = value + element.read(residual)[m, hl.min(x, q - 1), y]
    out[m, x, y] = element.narrow(activate(form.activation, value, m, x, y))
    schedule_output(axes, out, form.project or 0, tiles.outer, [y])
    final.compute_at(out, axes.xo)
    schedule_projection(axes, final, parts, tiles.outer, element)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, form.project).set_stride(1)
    buffer.dim(1).set_min(0).set_stride(form.project)
    if core.columns:
        buffer.dim(1).set_bounds(0, tiles.outer.pixels)
    return out, arguments


class _Slice:
    """The channels of one group as a source of `projection`."""

    def __init__(self, func: Any, group: int) -> None:
        self.func, self.group = func, group

    def __getitem__(self, place: tuple[Any, Any, Any]) -> Any:
        c, x, y = place
        return self.func[c, self.group, x, y]


def _convolution(axes: Axes, core: Core, padded: Any, source: Any, tile: Tile) -> tuple[Any, list[Any]]:
    """The accumulators `j g x y` and their arguments.

    Rows of taps beyond the input `source` are left out, and where its width is known columns too.
    """
    hl, form, product = halide(), core.form, core.product
    (r, s), c = form.kernel, sum(form.channels)
    (sh, sw), (dh, dw), (top, _, left, _) = form.stride, form.dilation, form.padding
    each = spread(c // form.groups, product)
    wide = form.groups * each
    blocks = -(-(form.out_channels // form.groups) // tile.block)
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    taps = weights_image("taps", tile.block, each * r * s, product)
    arguments, acc = [taps], hl.Func("acc")
    if form.pointwise:
        beside = weights_image("beside", tile.block, wide, product)
        arguments.append(beside)
    if form.bias:
        bias = image("bias", 1)
        arguments.append(bias)
        acc[j, g, x, y] = bias[j + g * (blocks * tile.block)]
    else:
        acc[j, g, x, y] = hl.f32(0.0)
    inner, panel = j % tile.block, j // tile.block + g * blocks

    def add(weights: Any, depth: Any, c: Any, column: Any, row: Any, two: Any) -> None:
        if two is None:
            acc[j, g, x, y] += weights[inner, depth, panel] * padded[c, column, row]
        else:
            weight = Widened(weights).factor(two, inner, depth, panel)
            acc[j, g, x, y] += weight * padded.factor(c * 2 + two, column, row)

    first, n = ([(0, 2)], each // 2) if product.pairs else ([], each)
    k = hl.RDom([*first, (0, n), (0, s), (0, r)], "k")
    two, (c, u, v) = (k[0] if first else None), (k[len(first) + i] for i in range(3))
    if form.padding[0] or form.padding[1]:
        row = y * sh + v * dh - top
        k.where((row >= 0) & (row < source.dim(2).extent()))
    if core.columns:
        column = x * sw + u * dw - left
        k.where((column >= 0) & (column < core.columns))
    channel = c * form.groups + g if mixed(form, product) else g * n + c
    add(taps, c + n * (u + s * v), channel, x * sw + u * dw - left, y * sh + v * dh - top, two)
    if form.pointwise:
        b = hl.RDom([*first, (0, form.groups * n)], "b")
        two, c = (b[0] if first else None), b[len(first)]
        add(beside, c, c, x * sw + (s // 2 * dw - left), y * sh + (r // 2 * dh - top), two)
    _schedule_sums(axes, acc, core, tile, n)
    return acc, arguments


def _schedule_sums(axes: Axes, acc: Any, core: Core, tile: Tile, n: int) -> None:
    """The sums over n channels (or pairs of them), columns and rows of taps, and over all channels beside them."""
    (r, s), pairs, outer = core.form.kernel, core.product.pairs, (axes.g, axes.y)
    acc.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)
    wide = core.form.groups * n * core.form.pointwise
    c, u, v = acc.rvars(0)[-3:]
    if not pairs and n * r * s + wide > MAX_K:
        # Where columns of a whole row are left out tap by tap, a piece has all of them: its pixels are constants then.
        kept, one = ([v], n * s) if core.columns or n * s <= MAX_K else ([u, v], n)
        kept = [cut(acc, 0, 0, n, MAX_K * n // one), *kept] if one > MAX_K else kept
        taps = [schedule_split_k(axes, acc, 0, kept, tile, outer), acc]
        if wide:
            schedule_split_k(axes, acc, 1, [cut(acc, 1, 0, wide)], tile, outer)
    else:
        for index in range(acc.num_update_definitions()):
            schedule_product(axes, acc.update(index), acc.rvars(index), tile, pairs, outer)
        taps = [acc]
    for func in taps:
        for loop in func.rvars(0):
            if (n <= 4 and loop.name() == c.name()) or (core.columns and loop.name() == u.name()):
                func.update(0).unroll(loop)


def _schedule_groups(axes: Axes, acc: Any, form: Grouped, tile: Tile, func: Any, scratch: bool) -> None:
    """Tiles of pixels × channels of one group; groups outermost. Scratch is as wide as whole blocks."""
    hl, each = halide(), form.out_channels // form.groups
    whole = scratch or each % tile.block == 0
    func.split(axes.m, axes.mo, axes.mi, tile.block, hl.TailStrategy.RoundUp if whole else hl.TailStrategy.Predicate)
    pixels = hl.TailStrategy.RoundUp if scratch else hl.TailStrategy.PredicateStores
    func.split(axes.x, axes.xo, axes.xi, tile.pixels, pixels)
    func.reorder(axes.mi, axes.xi, axes.xo, axes.y, axes.mo, axes.g).vectorize(axes.mi).unroll(axes.xi)
    acc.compute_at(func, axes.xo)
