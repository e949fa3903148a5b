"""Zero-padded copies that the group convolutions read, with channels in the order in which their products need them."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from leanconv.kernels.cpu.pipelines.bfloat16 import Bfloat16Map
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, image, map_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile
from leanconv.ops.grouped import Grouped

ROW_VECTOR = 16  # numbers of an image row that are copied at once
FEW_CHANNELS = 128  # of a map; more span so many cache lines that scattered reads get slow


@dataclass(frozen=True)
class GroupedCore:
    """What one kernel computes.

    Args:
        form: the group convolution.
        pixels: numbers from pixel to pixel of each input. Empty: the one input is an image in planes (NCHW).
        residual: numbers from pixel to pixel of the residual; 0 for none.
        element: of the maps.
        columns: the input's width, if one tile covers a whole row of the output; else 0.
    """

    form: Grouped
    pixels: tuple[int, ...]
    residual: int = 0
    element: ElementType = FLOAT32
    columns: int = 0

    @property
    def product(self) -> ElementType:
        """The element type of the group convolution's operands. Pairs need two channels of one group side by side."""
        several = sum(self.form.channels) > self.form.groups
        return self.element if several and self.pixels else replace(self.element, pairs=False)


def keeps_interleaving(form: Grouped, product: ElementType) -> bool:
    """Whether the copy leaves interleaved groups as the map has them; else it sorts channels by group.

    Products of float32 read one number at a time, from anywhere. Pairs must be neighbours.
    """
    return form.interleaved and not product.pairs and sum(form.channels) <= FEW_CHANNELS


def padded_depth(channels: int, product: ElementType) -> int:
    """Channels of a group in the copy: an even number if products take pairs; a channel of zeros fills up."""
    return channels + channels % 2 if product.pairs else channels


class ChannelCopy(NamedTuple):
    """Channels that are copied together: `first`, ... of the copy from `start`, `start + step`, ... of an input."""

    first: int
    channels: int
    source: int
    start: int
    step: int


def padded_map(axes: Axes, core: GroupedCore, tile: Tile) -> tuple[Any, list[Any], Any]:
    """The copy `c x y` of all inputs with zeros around; the inputs; their width."""
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
    for index, (first, count, which, start, step) in enumerate(_channel_copies(form, product)):
        r = hl.RDom([(0, count)], f"copy{index}")
        # Pairs keep the bits; other products read float32, widened once here instead of once per tap.
        source = arguments[which] if product.pairs else core.element.widen(arguments[which])
        value = source[r * step + start, hl.clamp(x, 0, w - 1), hl.clamp(y, 0, h - 1)]
        func[r + first, x, y] = hl.select(inside, value, zero) if pads else value
        update = func.update(index)
        (k,) = func.rvars(index)
        update.reorder(k, x, y)
        # Each channel is written once: Halide cannot prove it, hence allow_race_conditions.
        if count >= tile.lanes:
            ko, ki = hl.RVar(f"ko{index}"), hl.RVar(f"ki{index}")
            update.allow_race_conditions().split(k, ko, ki, tile.lanes, hl.TailStrategy.GuardWithIf).vectorize(ki)
        else:
            update.allow_race_conditions().vectorize(k)
    each = sum(form.channels) // form.groups
    wide = form.groups * padded_depth(each, product)
    if padded_depth(each, product) > each:
        r = hl.RDom([(0, form.groups)], "surplus")
        func[r * (each + 1) + each, x, y] = zero
        func.update(func.num_update_definitions() - 1).unscheduled()
    func.bound_extent(c, wide)
    func.align_storage(c, tile.scratch_stride(wide))
    # Once per block of rows: all taps and all blocks of outputs read it.
    func.compute_root()
    return (Bfloat16Map(func) if product.pairs else func), arguments, w


def _channel_copies(form: Grouped, product: ElementType) -> list[ChannelCopy]:
    """What the copy consists of; more than one item per input if its channels change their order or get a gap."""
    each = sum(form.channels) // form.groups
    room, copies, at = padded_depth(each, product), [], 0
    for index, channels in enumerate(form.channels):
        if form.interleaved and not keeps_interleaving(form, product):
            for group in range(form.groups):
                start = (group - at) % form.groups
                some = len(range(start, channels, form.groups))
                if some:
                    first = group * room + (at + start) // form.groups
                    copies.append(ChannelCopy(first, some, index, start, form.groups))
        elif room == each:  # also if interleaving is kept
            copies.append(ChannelCopy(at, channels, index, 0, 1))
        else:
            for group in range(form.groups):
                low, high = max(at, group * each), min(at + channels, (group + 1) * each)
                if low < high:
                    copies.append(ChannelCopy(low + group, high - low, index, low - at, 1))
        at += channels
    return copies


class _Planes:
    """A copy `x c y` that is read as `c x y`."""

    def __init__(self, func: Any) -> None:
        self.func = func

    def __getitem__(self, place: tuple[Any, Any, Any]) -> Any:
        c, x, y = place
        return self.func[x, c, y]


def padded_planes(axes: Axes, core: GroupedCore) -> tuple[Any, list[Any], Any]:
    """The copy `x c y` of an image in planes with zeros around; the input; its width."""
    hl, (c, x, y), (top, bottom, left, right) = halide(), (axes.c, axes.x, axes.y), core.form.padding
    source = image("in0", 3, core.element)
    source.dim(1).set_min(0)
    source.dim(2).set_min(0)
    w, h, func = source.dim(0).extent(), source.dim(2).extent(), hl.Func("padded")
    func[x, c, y] = hl.undef(hl.Float(32))
    r = hl.RDom([(0, w)], "row")
    value = core.element.widen(source)[r, c, hl.clamp(y, 0, h - 1)]
    func[r, c, y] = hl.select((y >= 0) & (y < h), value, 0.0) if top or bottom else value
    # Vectors along the row: a plane has no channels side by side.
    func.update(0).vectorize(r[0], ROW_VECTOR, hl.TailStrategy.GuardWithIf)
    for count, start in ((left, -left), (right, w)):
        if count:
            func[hl.RDom([(start, count)], "side"), c, y] = 0.0
            func.update(func.num_update_definitions() - 1).unscheduled()
    func.bound_extent(c, core.form.channels[0])
    func.compute_root()
    return _Planes(func), [source], w
