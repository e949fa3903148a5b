"""Direct group convolution of `ops/grouped.py` in Halide, with a parallel 1×1 in the same accumulators.

It reads a padded copy of the inputs (`padded.py`). Loops go group by group; for interleaved groups the copy and the
stores reorder channels. A 1×1 that follows reads the result from scratch. `winograd.py` shares all but the sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.bfloat16 import Bfloat16Map, pair_product
from leanconv.kernels.cpu.pipelines.element import image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    MAX_K,
    Axes,
    Operand,
    Tile,
    initial_value,
    projection,
    schedule_output,
    schedule_product,
    schedule_projection,
    schedule_split_k,
    split_k_loop,
)
from leanconv.kernels.cpu.pipelines.padded import (
    GroupedCore,
    keeps_interleaving,
    padded_depth,
    padded_map,
    padded_planes,
)
from leanconv.ops.grouped import Grouped
from leanconv.spec import out_length


@dataclass(frozen=True)
class GroupedTiles:
    """The register tiles of the group convolution and of the 1×1 that follows (equal if none does).

    `l1_fused`: see `winograd.pipeline`.
    """

    inner: Tile
    outer: Tile
    l1_fused: bool = False


@dataclass(frozen=True)
class Sums:
    """The sums of a convolution, direct or Winograd, before residual and activation.

    Args:
        at: the sum of channel j of group g at a pixel, `at(j, g, x, y)`.
        schedule: `schedule(func, scratch)` makes the loops of the Func that reads the sums.
        last: the last row of the residual that may be read, if the loops go beyond it; else None.
    """

    at: Callable[[Any, Any, Any, Any], Any]
    schedule: Callable[[Any, bool], None]
    last: Any = None


def pipeline(core: GroupedCore, tiles: GroupedTiles) -> tuple[Any, list[Any]]:
    """The kernel and its arguments. The output is `j g x y` (channel j of group g), or `m x y` if a 1×1 follows.

    Arguments: inputs `c x y`; packed taps `block c·r·s blocks·groups`; the parallel 1×1 `block c blocks·groups`, its
    channels group by group; the bias, in whole blocks per group; the 1×1 that follows, packed per group; its bias; the
    residual.
    """
    axes = Axes()
    padded, arguments, width = padded_map(axes, core, tiles.inner) if core.pixels else padded_planes(axes, core)
    acc, extra = _convolution(axes, core, padded, arguments[0], tiles.inner)
    sums = Sums(lambda j, g, x, y: acc[j, g, x, y], partial(_schedule_groups, axes, acc, core.form, tiles.inner))
    return finish(axes, core, tiles, sums, new_output(core), arguments + extra, width)


def new_output(core: GroupedCore) -> Any:
    """The kernel's output, not yet defined."""
    return halide().Func(core.element.halide_type, 4 if core.form.project is None else 3, "out")


def output_width(form: Grouped, width: Any) -> Any:
    """Columns of the output for an input of that width."""
    return out_length(width, form.kernel[1], form.stride[1], form.dilation[1], form.padding[2] + form.padding[3])


def finish(
    axes: Axes, core: GroupedCore, tiles: GroupedTiles, sums: Sums, out: Any, arguments: list[Any], width: Any
) -> tuple[Any, list[Any]]:
    """The epilogue: residual and activation, after the 1×1 that follows if there is one."""
    hl, form, element = halide(), core.form, core.element
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    q, each = output_width(form, width), form.out_channels // form.groups
    if form.project is not None:
        return _finish_projected(axes, core, tiles, sums, out, arguments, q)
    value = sums.at(j, g, x, y)
    if core.residual:
        residual = image("residual", 4, element)
        residual.dim(0).set_stride(form.groups if form.interleaved else 1)
        residual.dim(2).set_stride(core.residual)
        arguments.append(residual)
        # The last tile of a row, and the last 2×2 of a column, compute pixels that are not stored.
        row = y if sums.last is None else hl.min(y, sums.last)
        value = value + element.widen(residual)[j, g, hl.min(x, q - 1), row]
    out[j, g, x, y] = element.narrow(activate(form.activation, value, j, g, x, y))
    sums.schedule(out, False)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, each).set_stride(form.groups if form.interleaved else 1)
    buffer.dim(1).set_bounds(0, form.groups).set_stride(1 if form.interleaved else each)
    buffer.dim(2).set_min(0).set_stride(form.out_channels)
    if core.columns:
        buffer.dim(2).set_bounds(0, tiles.inner.pixels)
    return out, arguments


def _finish_projected(
    axes: Axes, core: GroupedCore, tiles: GroupedTiles, sums: Sums, out: Any, arguments: list[Any], q: Any
) -> tuple[Any, list[Any]]:
    """The inner activation, the 1×1 that follows, residual and activation."""
    hl, form, element, inner = halide(), core.form, core.element, halide().Func("inner")
    j, g, x, y, m = axes.m, axes.g, axes.x, axes.y, axes.m
    inner[j, g, x, y] = element.to_scratch(activate(form.inner_activation, sums.at(j, g, x, y), j, g, x, y))
    # All groups of a block of rows first: every output of the 1×1 sums over all of them.
    inner.compute_root()
    sums.schedule(inner, True)
    each, operands = form.out_channels // form.groups, []
    for index in range(form.groups):
        weights = weights_image(f"project{index}", tiles.outer.block, each, element)
        arguments.append(weights)
        operands.append(Operand(element.from_scratch(_GroupSlice(inner, index)), each, weights))
    start = initial_value(axes, form.project_bias, arguments, "project_bias")
    final = projection(axes, operands, start, tiles.outer, element)
    value = final[m, x, y]
    if core.residual:
        residual = map_image("residual", core.residual, element)
        arguments.append(residual)
        value = value + element.widen(residual)[m, hl.min(x, q - 1), y]
    out[m, x, y] = element.narrow(activate(form.activation, value, m, x, y))
    schedule_output(axes, out, form.project or 0, tiles.outer, [y])
    final.compute_at(out, axes.xo)
    schedule_projection(axes, final, operands, tiles.outer, element)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, form.project).set_stride(1)
    buffer.dim(1).set_min(0).set_stride(form.project)
    if core.columns:
        buffer.dim(1).set_bounds(0, tiles.outer.pixels)
    return out, arguments


class _GroupSlice:
    """The channels of one group as the source of an `Operand`."""

    def __init__(self, func: Any, group: int) -> None:
        self.func, self.group = func, group

    def __getitem__(self, place: tuple[Any, Any, Any]) -> Any:
        c, x, y = place
        return self.func[c, self.group, x, y]


def _convolution(axes: Axes, core: GroupedCore, padded: Any, source: Any, tile: Tile) -> tuple[Any, list[Any]]:
    """The accumulators `j g x y` and their arguments.

    Taps above and below the input `source` are skipped; taps left and right of it too, if its width is known.
    """
    hl, form, product = halide(), core.form, core.product
    (r, s), c = form.kernel, sum(form.channels)
    (sh, sw), (dh, dw), (top, _, left, _) = form.stride, form.dilation, form.padding
    each = padded_depth(c // form.groups, product)
    wide = form.groups * each
    blocks = -(-(form.out_channels // form.groups) // tile.block)
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    taps = weights_image("taps", tile.block, each * r * s, product)
    arguments, acc = [taps], hl.Func("acc")
    if form.pointwise:
        pointwise = weights_image("all_groups", tile.block, wide, product)
        arguments.append(pointwise)
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
            at = (two, inner, depth, panel)
            acc[j, g, x, y] += pair_product(Bfloat16Map(weights), at, padded, (c * 2 + two, column, row))

    first, n = ([(0, 2)], each // 2) if product.pairs else ([], each)
    k = hl.RDom([*first, (0, n), (0, s), (0, r)], "k")
    two, (c, u, v) = (k[0] if first else None), (k[len(first) + i] for i in range(3))
    if form.padding[0] or form.padding[1]:
        row = y * sh + v * dh - top
        k.where((row >= 0) & (row < source.dim(2).extent()))
    if core.columns:
        column = x * sw + u * dw - left
        k.where((column >= 0) & (column < core.columns))
    channel = c * form.groups + g if keeps_interleaving(form, product) else g * n + c
    add(taps, c + n * (u + s * v), channel, x * sw + u * dw - left, y * sh + v * dh - top, two)
    if form.pointwise:
        b = hl.RDom([*first, (0, form.groups * n)], "b")
        two, c = (b[0] if first else None), b[len(first)]
        add(pointwise, c, c, x * sw + (s // 2 * dw - left), y * sh + (r // 2 * dh - top), two)
    _schedule_accumulators(axes, acc, core, tile, n)
    return acc, arguments


def _schedule_accumulators(axes: Axes, acc: Any, core: GroupedCore, tile: Tile, n: int) -> None:
    """The sums over n channels (or pairs), columns and rows of taps, and over all channels of the parallel 1×1."""
    (r, s), pairs, outer = core.form.kernel, core.product.pairs, (axes.g, axes.y)
    acc.bound_extent(axes.m, tile.block).vectorize(axes.m, tile.lanes).unroll(axes.m).unroll(axes.x)
    wide = core.form.groups * n * core.form.pointwise
    c, u, v = acc.rvars(0)[-3:]
    if not pairs and n * r * s + wide > MAX_K:
        # Split-K by rows of taps, else by single taps. If taps are skipped by column, a partial sum has a whole row of
        # taps: which pixels skip which tap is then known at compile time.
        kept, one = ([v], n * s) if core.columns or n * s <= MAX_K else ([u, v], n)
        kept = [split_k_loop(acc, 0, 0, n, MAX_K * n // one), *kept] if one > MAX_K else kept
        taps = [schedule_split_k(axes, acc, 0, kept, tile, outer), acc]
        if wide:
            schedule_split_k(axes, acc, 1, [split_k_loop(acc, 1, 0, wide)], tile, outer)
    else:
        for index in range(acc.num_update_definitions()):
            schedule_product(axes, acc.update(index), acc.rvars(index), tile, pairs, outer)
        taps = [acc]
    # Few channels are a short loop, written out. Unrolled columns of taps turn the skipped ones into constants.
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
    # Rows inside a block of channels: the taps of that block stay in the cache.
    func.reorder(axes.mi, axes.xi, axes.xo, axes.y, axes.mo, axes.g).vectorize(axes.mi).unroll(axes.xi)
    acc.compute_at(func, axes.xo)
