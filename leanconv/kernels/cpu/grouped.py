"""`ops/grouped.py` in Halide: padded copy, then the group convolution (and the 1×1 beside it) straight from it.

Channels are taken group by group throughout; where they are dealt to the groups like cards, the copy and the stores put
them in order. A 1×1 that follows reads the result from scratch.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.activations import activate
from leanconv.kernels.cpu.frontend import halide
from leanconv.kernels.cpu.pieces import (
    Axes,
    Tile,
    image,
    map_image,
    projection,
    schedule_output,
    schedule_projection,
    weights_image,
)  # fmt: skip
from leanconv.ops.grouped import Grouped

WHOLE = 16  # numbers of a row that are copied at once


@dataclass(frozen=True)
class Core:
    """What one kernel computes: the form, and the numbers from pixel to pixel of each input and of the residual.

    No `pixels`: the one input is an image in planes.
    """

    form: Grouped
    pixels: tuple[int, ...]
    residual: int = 0


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
    hl, form, axes = halide(), core.form, Axes()
    padded, arguments, width = _padded(axes, core, tiles.inner) if core.pixels else _planes(axes, form)
    acc, extra = _convolution(axes, form, padded, tiles.inner)
    arguments += extra
    out = hl.Func("out")
    q = (width + form.padding[2] + form.padding[3] - form.dilation[1] * (form.kernel[1] - 1) - 1) // form.stride[1] + 1
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    if form.project is None:
        value = acc[j, g, x, y]
        if core.residual:
            residual = image("residual", 4)
            residual.dim(0).set_stride(form.groups if form.dealt else 1)
            residual.dim(2).set_stride(core.residual)
            arguments.append(residual)
            value = value + residual[j, g, hl.min(x, q - 1), y]
        out[j, g, x, y] = activate(form.activation, value, j, g, x, y)
        _schedule_groups(axes, out, acc, form, tiles.inner)
        buffer, each = out.output_buffer(), form.out_channels // form.groups
        buffer.dim(0).set_bounds(0, each).set_stride(form.groups if form.dealt else 1)
        buffer.dim(1).set_bounds(0, form.groups).set_stride(1 if form.dealt else each)
        buffer.dim(2).set_min(0).set_stride(form.out_channels)
        return out, arguments
    inner = hl.Func("inner")
    inner[j, g, x, y] = activate(form.inner_activation, acc[j, g, x, y], j, g, x, y)
    inner.compute_root()
    _schedule_groups(axes, inner, acc, form, tiles.inner, scratch=True)
    each, parts = form.out_channels // form.groups, []
    for index in range(form.groups):
        weights = weights_image(f"project{index}", tiles.outer.block, each)
        arguments.append(weights)
        parts.append((_Slice(inner, index), each, weights))
    start: Any = hl.f32(0.0)
    if form.project_bias:
        arguments.append(image("project_bias", 1))
        start = arguments[-1][axes.m]
    final = projection(axes, parts, start, tiles.outer)
    value = final[axes.m, x, y]
    if core.residual:
        residual = map_image("residual", core.residual)
        arguments.append(residual)
        value = value + residual[axes.m, hl.min(x, q - 1), y]
    out[axes.m, x, y] = activate(form.activation, value, axes.m, x, y)
    schedule_output(axes, out, form.project, tiles.outer, [y])
    final.compute_at(out, axes.xo)
    schedule_projection(axes, final, len(parts), tiles.outer)
    buffer = out.output_buffer()
    buffer.dim(0).set_bounds(0, form.project).set_stride(1)
    buffer.dim(1).set_min(0).set_stride(form.project)
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
    hl, form = halide(), core.form
    (c, x, y), arguments, at = (axes.c, axes.x, axes.y), [], 0
    func = hl.Func("padded")
    func[c, x, y] = hl.undef(hl.Float(32))
    moves = []  # first channel of the copy, how many, from where, and how far apart there
    for index, (channels, pixel) in enumerate(zip(form.channels, core.pixels, strict=True)):
        source = map_image(f"in{index}", pixel)
        source.dim(2).set_min(0)
        arguments.append(source)
        if form.dealt:
            each = channels // form.groups
            moves += [(group * each, each, source, group, form.groups) for group in range(form.groups)]
        else:
            moves.append((at, channels, source, 0, 1))
        at += channels
    w, h = arguments[0].dim(1).extent(), arguments[0].dim(2).extent()
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    pads = any(form.padding)
    for index, (first, count, source, start, step) in enumerate(moves):
        r = hl.RDom([(0, count)], f"copy{index}")
        value = source[r * step + start, hl.clamp(x, 0, w - 1), hl.clamp(y, 0, h - 1)]
        func[r + first, x, y] = hl.select(inside, value, 0.0) if pads else value
        update = func.update(index)
        (k,) = func.rvars(index)
        update.reorder(k, x, y)
        if count >= tile.lanes:
            ko, ki = hl.RVar(f"ko{index}"), hl.RVar(f"ki{index}")
            update.allow_race_conditions().split(k, ko, ki, tile.lanes, hl.TailStrategy.GuardWithIf).vectorize(ki)
        else:
            update.allow_race_conditions().vectorize(k)
    func.bound_extent(c, at)
    func.align_storage(c, tile.storage(at))
    func.compute_root()
    return func, arguments, w


class _Planes:
    """A copy `x c y` as a source `c x y`."""

    def __init__(self, func: Any) -> None:
        self.func = func

    def __getitem__(self, place: tuple[Any, Any, Any]) -> Any:
        c, x, y = place
        return self.func[x, c, y]


def _planes(axes: Axes, form: Grouped) -> tuple[Any, list[Any], Any]:
    """An image in planes with zeros around, row by row of each plane; the input; its width."""
    hl, (c, x, y), (top, bottom, left, right) = halide(), (axes.c, axes.x, axes.y), form.padding
    source = image("in0", 3)
    source.dim(1).set_min(0)
    source.dim(2).set_min(0)
    w, h, func = source.dim(0).extent(), source.dim(2).extent(), hl.Func("padded")
    func[x, c, y] = hl.undef(hl.Float(32))
    r = hl.RDom([(0, w)], "row")
    value = source[r, c, hl.clamp(y, 0, h - 1)]
    func[r, c, y] = hl.select((y >= 0) & (y < h), value, 0.0) if top or bottom else value
    func.update(0).vectorize(r[0], WHOLE, hl.TailStrategy.GuardWithIf)
    for count, start in ((left, -left), (right, w)):
        if count:
            func[hl.RDom([(start, count)], "side"), c, y] = 0.0
            func.update(func.num_update_definitions() - 1).unscheduled()
    func.bound_extent(c, form.channels[0])
    func.compute_root()
    return _Planes(func), [source], w


def _convolution(axes: Axes, form: Grouped, padded: Any, tile: Tile) -> tuple[Any, list[Any]]:
    """The accumulators `j g x y` and their arguments."""
    hl, (r, s), c = halide(), form.kernel, sum(form.channels)
    (sh, sw), (dh, dw), (top, _, left, _) = form.stride, form.dilation, form.padding
    each, wide = c // form.groups, c
    blocks = -(-(form.out_channels // form.groups) // tile.block)
    j, g, x, y = axes.m, axes.g, axes.x, axes.y
    taps = weights_image("taps", tile.block, each * r * s)
    arguments, acc = [taps], hl.Func("acc")
    beside = weights_image("beside", tile.block, wide) if form.pointwise else None
    arguments += [beside] if form.pointwise else []
    if form.bias:
        bias = image("bias", 1)
        arguments.append(bias)
        acc[j, g, x, y] = bias[j + g * (blocks * tile.block)]
    else:
        acc[j, g, x, y] = hl.f32(0.0)
    k = hl.RDom([(0, each), (0, s), (0, r)], "k")
    panel = j // tile.block + g * blocks
    acc[j, g, x, y] += (
        taps[j % tile.block, k[0] + each * (k[1] + s * k[2]), panel]
        * padded[g * each + k[0], x * sw + k[1] * dw - left, y * sh + k[2] * dh - top]
    )
    if beside is not None:
        b = hl.RDom([(0, wide)], "b")
        centre = padded[b, x * sw + (s // 2 * dw - left), y * sh + (r // 2 * dh - top)]
        acc[j, g, x, y] += beside[j % tile.block, b, panel] * centre
    acc.bound_extent(j, tile.block).vectorize(j, tile.lanes).unroll(j).unroll(x)
    for index in range(acc.num_update_definitions()):
        update, inner = acc.update(index), acc.rvars(index)
        update.reorder(j, x, *inner, g, y).vectorize(j, tile.lanes).unroll(j).unroll(x)
        if index == 0 and each <= 4:
            update.unroll(inner[0])
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
