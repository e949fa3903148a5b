"""`ops/grouped.py` in Halide: padded copy, then the group convolution (and the 1×1 beside it) straight from it.

Channels are taken group by group throughout; where they are dealt to the groups like cards, the copy and the stores put
them in order. A 1×1 that follows reads the result from scratch.
"""

from dataclasses import dataclass, replace
from typing import Any

from leanconv.kernels.cpu.activations import activate
from leanconv.kernels.cpu.frontend import halide
from leanconv.kernels.cpu.pieces import (
    Axes,
    Tile,
    projection,
    schedule_output,
    schedule_product,
    schedule_projection,
    start_of,
)  # fmt: skip
from leanconv.kernels.cpu.storage import FLOAT, Storage, Widened, image, map_image, weights_image
from leanconv.ops.grouped import Grouped

WHOLE = 16  # numbers of a row that are copied at once


MIXED = 128  # channels of a map, see `mixed`


@dataclass(frozen=True)
class Core:
    """What one kernel computes: the form, the numbers from pixel to pixel of each input and of the residual, and how
    the maps are stored.

    No `pixels`: the one input is an image in planes. `columns`: where one tile makes a whole row, the input's width.
    """

    form: Grouped
    pixels: tuple[int, ...]
    residual: int = 0
    storage: Storage = FLOAT
    columns: int = 0

    @property
    def product(self) -> Storage:
        """How the group convolution multiplies: pairs are two channels of one group, side by side."""
        several = sum(self.form.channels) > self.form.groups
        return self.storage if several and self.pixels else replace(self.storage, pairs=False)


def mixed(form: Grouped, product: Storage) -> bool:
    """Whether the padded copy has dealt channels as the map has them; else group by group.

    Products of float32 read one number at a time, from anywhere. With many channels a group's lie on too many lines.
    """
    return form.dealt and not product.pairs and sum(form.channels) <= MIXED


def spread(channels: int, product: Storage) -> int:
    """Channels of a group in the padded copy: an even number, the last of them zero, where products take pairs."""
    return channels + channels % 2 if product.pairs else channels


@dataclass(frozen=True)
class Tiles:
    """The tiles of the group convolution and of the 1×1 that follows (the same where none does)."""

    inner: Tile
    outer: Tile


def pipeline(core: Core, tiles: Tiles) -> tuple[Any, list[Any]]:
    """The kernel and its arguments.

    Inputs `c x y`; packed taps `block c·r·s blocks·groups`; the packed 1×1 beside it `block c blocks·groups`, its
    channels group by group; the bias, whole blocks per group; the packed 1×1 that follows, per group; its bias; the
    residual. The output is `j g x y` (channel j of group g), or `m x y` where a 1×1 follows.
    """
    hl, form, axes, storage = halide(), core.form, Axes(), core.storage
    padded, arguments, width = _padded(axes, core, tiles.inner) if core.pixels else _planes(axes, core)
    acc, extra = _convolution(axes, core, padded, arguments[0], tiles.inner)
    arguments += extra
    out = hl.Func("out")
    q = (width + form.padding[2] + form.padding[3] - form.dilation[1] * (form.kernel[1] - 1) - 1) // form.stride[1] + 1
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    if form.project is None:
        value = acc[j, g, x, y]
        if core.residual:
            residual = image("residual", 4, storage)
            residual.dim(0).set_stride(form.groups if form.dealt else 1)
            residual.dim(2).set_stride(core.residual)
            arguments.append(residual)
            value = value + storage.read(residual)[j, g, hl.min(x, q - 1), y]
        out[j, g, x, y] = storage.narrow(activate(form.activation, value, j, g, x, y))
        _schedule_groups(axes, out, acc, form, tiles.inner)
        buffer, each = out.output_buffer(), form.out_channels // form.groups
        buffer.dim(0).set_bounds(0, each).set_stride(form.groups if form.dealt else 1)
        buffer.dim(1).set_bounds(0, form.groups).set_stride(1 if form.dealt else each)
        buffer.dim(2).set_min(0).set_stride(form.out_channels)
        if core.columns:
            buffer.dim(2).set_bounds(0, tiles.inner.pixels)
        return out, arguments
    inner = hl.Func("inner")
    inner[j, g, x, y] = storage.factor(activate(form.inner_activation, acc[j, g, x, y], j, g, x, y))
    inner.compute_root()
    _schedule_groups(axes, inner, acc, form, tiles.inner, scratch=True)
    each, parts = form.out_channels // form.groups, []
    for index in range(form.groups):
        weights = weights_image(f"project{index}", tiles.outer.block, each, storage)
        arguments.append(weights)
        parts.append((storage.factors(_Slice(inner, index)), each, weights))
    start = start_of(axes, form.project_bias, arguments, "project_bias")
    final = projection(axes, parts, start, tiles.outer, storage)
    value = final[axes.m, x, y]
    if core.residual:
        residual = map_image("residual", core.residual, storage)
        arguments.append(residual)
        value = value + storage.read(residual)[axes.m, hl.min(x, q - 1), y]
    out[axes.m, x, y] = storage.narrow(activate(form.activation, value, axes.m, x, y))
    schedule_output(axes, out, form.project, tiles.outer, [y])
    final.compute_at(out, axes.xo)
    schedule_projection(axes, final, tiles.outer, storage)
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


def _padded(axes: Axes, core: Core, tile: Tile) -> tuple[Any, list[Any], Any]:
    """All inputs with zeros around, channels group by group: `c x y`; the inputs; their width."""
    hl, form, product = halide(), core.form, core.product
    (c, x, y), arguments = (axes.c, axes.x, axes.y), []
    stored = product.factor_type
    zero, func = hl.cast(stored, 0), hl.Func("padded")
    func[c, x, y] = hl.undef(stored)
    for index, pixel in enumerate(core.pixels):
        source = map_image(f"in{index}", pixel, core.storage)
        source.dim(2).set_min(0)
        if core.columns:
            source.dim(1).set_bounds(0, core.columns)
        arguments.append(source)
    w, h = arguments[0].dim(1).extent(), arguments[0].dim(2).extent()
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    pads = any(form.padding)
    for index, (first, count, which, start, step) in enumerate(_moves(form, product)):
        r = hl.RDom([(0, count)], f"copy{index}")
        source = arguments[which] if product.pairs else core.storage.read(arguments[which])
        value = source[r * step + start, hl.clamp(x, 0, w - 1), hl.clamp(y, 0, h - 1)]
        func[r + first, x, y] = hl.select(inside, value, zero) if pads else value
        update = func.update(index)
        (k,) = func.rvars(index)
        update.reorder(k, x, y)
        if count >= tile.lanes:
            ko, ki = hl.RVar(f"ko{index}"), hl.RVar(f"ki{index}")
            update.allow_race_conditions().split(k, ko, ki, tile.lanes, hl.TailStrategy.GuardWithIf).vectorize(ki)
        else:
            update.allow_race_conditions().vectorize(k)
    each = sum(form.channels) // form.groups
    wide = form.groups * spread(each, product)
    if spread(each, product) > each:
        r = hl.RDom([(0, form.groups)], "surplus")
        func[r * (each + 1) + each, x, y] = zero
        func.update(func.num_update_definitions() - 1).unscheduled()
    func.bound_extent(c, wide)
    func.align_storage(c, tile.storage(wide))
    func.compute_root()
    return (Widened(func) if product.pairs else func), arguments, w


def _moves(form: Grouped, product: Storage) -> list[tuple[int, int, int, int, int]]:
    """What the copy consists of: its first channel, how many, of which input, from where, and how far apart there."""
    each = sum(form.channels) // form.groups
    room, moves, at = spread(each, product), [], 0
    for index, channels in enumerate(form.channels):
        if form.dealt and not mixed(form, product):
            for group in range(form.groups):
                start = (group - at) % form.groups
                some = len(range(start, channels, form.groups))
                if some:
                    moves.append((group * room + (at + start) // form.groups, some, index, start, form.groups))
        elif room == each:  # `mixed` too
            moves.append((at, channels, index, 0, 1))
        else:
            for group in range(form.groups):
                low, high = max(at, group * each), min(at + channels, (group + 1) * each)
                if low < high:
                    moves.append((low + group, high - low, index, low - at, 1))
        at += channels
    return moves


class _Planes:
    """A copy `x c y` as a source `c x y`."""

    def __init__(self, func: Any) -> None:
        self.func = func

    def __getitem__(self, place: tuple[Any, Any, Any]) -> Any:
        c, x, y = place
        return self.func[x, c, y]


def _planes(axes: Axes, core: Core) -> tuple[Any, list[Any], Any]:
    """An image in planes with zeros around, row by row of each plane; the input; its width."""
    hl, (c, x, y), (top, bottom, left, right) = halide(), (axes.c, axes.x, axes.y), core.form.padding
    source = image("in0", 3, core.storage)
    source.dim(1).set_min(0)
    source.dim(2).set_min(0)
    w, h, func = source.dim(0).extent(), source.dim(2).extent(), hl.Func("padded")
    func[x, c, y] = hl.undef(hl.Float(32))
    r = hl.RDom([(0, w)], "row")
    value = core.storage.read(source)[r, c, hl.clamp(y, 0, h - 1)]
    func[r, c, y] = hl.select((y >= 0) & (y < h), value, 0.0) if top or bottom else value
    func.update(0).vectorize(r[0], WHOLE, hl.TailStrategy.GuardWithIf)
    for count, start in ((left, -left), (right, w)):
        if count:
            func[hl.RDom([(start, count)], "side"), c, y] = 0.0
            func.update(func.num_update_definitions() - 1).unscheduled()
    func.bound_extent(c, core.form.channels[0])
    func.compute_root()
    return _Planes(func), [source], w


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
    acc.bound_extent(j, tile.block).vectorize(j, tile.lanes).unroll(j).unroll(x)
    for index in range(acc.num_update_definitions()):
        schedule_product(axes, acc.update(index), acc.rvars(index), tile, product.pairs, (g, y))
    if n <= 4:
        acc.update(0).unroll(acc.rvars(0)[len(first)])
    if core.columns:
        acc.update(0).unroll(acc.rvars(0)[len(first) + 1])
    return acc, arguments


def _schedule_groups(axes: Axes, func: Any, acc: Any, form: Grouped, tile: Tile, scratch: bool = False) -> None:
    """Tiles of pixels × channels of one group; groups outermost. Scratch is as wide as whole blocks."""
    hl, each = halide(), form.out_channels // form.groups
    whole = scratch or each % tile.block == 0
    func.split(axes.m, axes.mo, axes.mi, tile.block, hl.TailStrategy.RoundUp if whole else hl.TailStrategy.Predicate)
    pixels = hl.TailStrategy.RoundUp if scratch else hl.TailStrategy.PredicateStores
    func.split(axes.x, axes.xo, axes.xi, tile.pixels, pixels)
    func.reorder(axes.mi, axes.xi, axes.xo, axes.y, axes.mo, axes.g).vectorize(axes.mi).unroll(axes.xi)
    acc.compute_at(func, axes.xo)
