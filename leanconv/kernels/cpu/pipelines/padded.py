"""What the grouped kernels read: a padded copy of their inputs, channels in the order in which products take them."""

from dataclasses import dataclass, replace
from typing import Any

from leanconv.kernels.cpu.pipelines.bfloat16 import Bfloat16Map
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, image, map_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile
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
    element: ElementType = FLOAT32
    columns: int = 0

    @property
    def product(self) -> ElementType:
        """How the group convolution multiplies: pairs are two channels of one group, side by side."""
        several = sum(self.form.channels) > self.form.groups
        return self.element if several and self.pixels else replace(self.element, pairs=False)


def mixed(form: Grouped, product: ElementType) -> bool:
    """Whether the padded copy has dealt channels as the map has them; else group by group.

    Products of float32 read one number at a time, from anywhere. With many channels a group's lie on too many lines.
    """
    return form.interleaved and not product.pairs and sum(form.channels) <= MIXED


def spread(channels: int, product: ElementType) -> int:
    """Channels of a group in the padded copy: an even number, the last of them zero, where products take pairs."""
    return channels + channels % 2 if product.pairs else channels


def padded_map(axes: Axes, core: Core, tile: Tile) -> tuple[Any, list[Any], Any]:
    """All inputs with zeros around, channels group by group: `c x y`; the inputs; their width."""
    hl, form, product = halide(), core.form, core.product
    (c, x, y), arguments = (axes.c, axes.x, axes.y), []
    stored = product.scratch_type
    zero, func = hl.cast(stored, 0), hl.Func("padded")
    func[c, x, y] = hl.undef(stored)
    for index, pixel in enumerate(core.pixels):
        source = map_image(f"in{index}", pixel, core.element)
        source.dim(2).set_min(0)
        if core.columns:
            source.dim(1).set_bounds(0, core.columns)
        arguments.append(source)
    w, h = arguments[0].dim(1).extent(), arguments[0].dim(2).extent()
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    pads = any(form.padding)
    for index, (first, count, which, start, step) in enumerate(_moves(form, product)):
        r = hl.RDom([(0, count)], f"copy{index}")
        source = arguments[which] if product.pairs else core.element.widen(arguments[which])
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
    func.align_storage(c, tile.scratch_stride(wide))
    func.compute_root()
    return (Bfloat16Map(func) if product.pairs else func), arguments, w


def _moves(form: Grouped, product: ElementType) -> list[tuple[int, int, int, int, int]]:
    """What the copy consists of: its first channel, how many, of which input, from where, and how far apart there."""
    each = sum(form.channels) // form.groups
    room, moves, at = spread(each, product), [], 0
    for index, channels in enumerate(form.channels):
        if form.interleaved and not mixed(form, product):
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


def padded_planes(axes: Axes, core: Core) -> tuple[Any, list[Any], Any]:
    """An image in planes with zeros around, row by row of each plane; the input; its width."""
    hl, (c, x, y), (top, bottom, left, right) = halide(), (axes.c, axes.x, axes.y), core.form.padding
    source = image("in0", 3, core.element)
    source.dim(1).set_min(0)
    source.dim(2).set_min(0)
    w, h, func = source.dim(0).extent(), source.dim(2).extent(), hl.Func("padded")
    func[x, c, y] = hl.undef(hl.Float(32))
    r = hl.RDom([(0, w)], "row")
    value = core.element.widen(source)[r, c, hl.clamp(y, 0, h - 1)]
    func[r, c, y] = hl.select((y >= 0) & (y < h), value, 0.0) if top or bottom else value
    func.update(0).vectorize(r[0], WHOLE, hl.TailStrategy.GuardWithIf)
    for count, start in ((left, -left), (right, w)):
        if count:
            func[hl.RDom([(start, count)], "side"), c, y] = 0.0
            func.update(func.num_update_definitions() - 1).unscheduled()
    func.bound_extent(c, core.form.channels[0])
    func.compute_root()
    return _Planes(func), [source], w
