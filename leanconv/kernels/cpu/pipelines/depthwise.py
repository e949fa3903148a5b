"""Depthwise stencils in Halide, one vector of channels after the other: `i b x y`, number i of vector b.

Between two stencils there is a copy with its border, of one vector of channels and all rows of the block: small enough
for the first-level cache, each line of it full. Only what lies inside a map is computed. Its border is stored as zeros:
of 7×7 pixels before a 7×1 a computed border would be as much work as the map. The first of few taps reads the map
where it lies: the columns at its sides are stages of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import ElementType, image, map_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes
from leanconv.ops.forms import Stencil

MOST_WRITTEN_OUT = 11  # taps of a stencil


@dataclass(frozen=True)
class Track:
    """Channels that lie side by side in one input and share their stencils.

    Args:
        pixel: numbers from one pixel of the input to the next.
        channels, stencils: how many, and which one after the other.
        tiles: pixels made together, of the input and of each stencil's output; at most as many as a row has.
        strips: tiles of a row that are made in all rows before the next ones, of the same; 0: all of them.
        far: the input comes from memory: it is read pixel by pixel, before the vectors of channels take turns.
        direct: the first stencil reads the input where it lies, and not a copy with a border.
    """

    pixel: int
    channels: int
    stencils: tuple[Stencil, ...]
    tiles: tuple[int, ...]
    strips: tuple[int, ...]
    from_memory: bool
    direct: bool = False


@dataclass(frozen=True)
class Columns:
    """Columns of a map that are made alike: `value` (`i b x y`, to be inlined) of `width` of them, from `first` on.

    Args:
        tile: of them made together; None: the track's.
    """

    value: Any
    first: Any
    width: Any
    tile: int | None = None


@dataclass
class Loops:
    """The loops over the inside of a map, from the innermost; `order` has those of the sum (RVars) alone."""

    order: list[Any]
    pixel: Any
    tile: Any
    masked: bool
    pixels: int  # of a tile


@dataclass
class Between:
    """A map with its border: the Func, the loops of the stages that fill its inside, accumulators if it has some."""

    func: Any
    loops: list[Loops]
    sums: Any


@dataclass
class Chain:
    """The stencils of a track: `value` is the last one's result (`i b x y`, to be inlined), `h` `w` its size.

    Args:
        sums: accumulators of `value`, or None.
        partial: `value` reads the map itself, whose last vector has fewer numbers than lanes.
        pieces: of a map whose columns are not all made alike; `value` is none of them then.
    """

    value: Any
    h: Any
    w: Any
    arguments: list[Any]
    between: list[Between] = field(default_factory=list)
    sums: Any = None
    partial: bool = False
    pieces: list[Columns] = field(default_factory=list)

    @property
    def columns(self) -> list[Columns]:
        """All columns, most of them in the first of the list."""
        return self.pieces or [Columns(self.value, 0, self.w)]


def tile_stride(channels: int) -> int:
    """Numbers from one tap of all channels to the next: whole vectors of any width."""
    return -(-channels // 16) * 16


def chain(axes: Axes, track: Track, index: int, lanes: int, element: ElementType) -> Chain:
    """The stencils of a track, in float32; arguments: the map `c x y`, then taps and bias of each."""
    hl, (i, b, x, y) = halide(), (axes.i, axes.b, axes.x, axes.y)
    source = map_image(f"in{index}", track.pixel, element)
    source.dim(2).set_min(0)
    func = hl.Func(f"map{index}")
    func[i, b, x, y] = element.read(source)[b * lanes + i, x, y]
    w, h = source.dim(1).extent(), source.dim(2).extent()
    made = Chain(func, h, w, [source], partial=track.channels % lanes != 0)
    for place, form in enumerate(track.stencils):
        name = f"t{index}_{place}"
        direct = track.direct and not place
        if not direct and (form.kernel != (1, 1) or any(form.padding) or made.sums is not None):
            _bordered(axes, made, form, track, place, lanes, f"{name}_in")
        _apply(axes, made, form, track.channels, lanes, name, direct)
    return made


def _bordered(axes: Axes, made: Chain, form: Stencil, track: Track, place: int, lanes: int, name: str) -> None:
    """Put a map with the border that `form` wants behind the chain's value."""
    hl, (i, b, x, y), (h, w) = halide(), (axes.i, axes.b, axes.x, axes.y), (made.h, made.w)
    (top, bottom, left, right), func = form.padding, hl.Func(name)
    func[i, b, x, y] = hl.undef(hl.Float(32))
    stages = []
    for number, columns in enumerate(made.columns):
        loops, lane, column, _ = inside(axes, made, columns, track, place, lanes, f"{name}{number}")
        func[lane, b, column, y] = columns.value[lane, b, column, y]
        stages.append(loops)
    for side, (start, count) in {"left": (-left, left), "right": (w, right)}.items():
        if count:
            func[i, b, hl.RDom([(start, count)], f"{name}_{side}")[0], y] = 0.0
    if top or bottom:
        across = hl.RDom([(-left, w + (left + right))], f"{name}_rows")
        across.where((y < 0) | (y >= h))
        func[i, b, across[0], y] = 0.0
    made.between.append(Between(func, stages, made.sums))
    made.value, made.sums, made.partial, made.pieces = func, None, False, []


def inside(
    axes: Axes,
    made: Chain,
    columns: Columns,
    track: Track,
    place: int,
    lanes: int,
    name: str,
    gated: bool = False,
    block: tuple[Any, Any] | None = None,
) -> tuple[Loops, Any, Any, Any]:
    """Loops over some columns of a map, a tile at a time, the last of them over some of those before it once more.

    Args:
        place: which of the track's tiles and strips.
        gated: a vector with one number per channel is read. Where channels end in part of a vector it is masked then.
        block: first row and their number; else rows are the variable y, and those inside the map are made.
    Returns: the loops, the number in the vector, the column and the row.
    """
    hl, pixels, strip = halide(), columns.tile or track.tiles[place], 0 if columns.tile else track.strips[place]
    masked = made.partial or (gated and track.channels % lanes != 0)
    tiles = 1 if columns.tile else (columns.width + (pixels - 1)) // pixels
    ranges = [(0, lanes)] * masked + [(0, pixels), (0, strip or tiles)] + ([block] if block else [])
    domain = hl.RDom(ranges + ([(0, (tiles + (strip - 1)) // strip)] if strip else []), f"{name}_inside")
    order = [domain[k] for k in range(len(ranges) + bool(strip))]
    pixel, tile = order[masked], order[masked + 1]
    if masked:
        domain.where(axes.b * lanes + order[0] < track.channels)
    if strip:
        domain.where(order[-1] * strip + tile < tiles)
    row = order[masked + 2] if block else axes.y
    if not block:
        domain.where((row >= 0) & (row < made.h))
    column = hl.min((order[-1] * strip + tile if strip else tile) * pixels, columns.width - pixels) + pixel
    column = columns.first + (pixel if columns.tile else column)
    return Loops(order, pixel, tile, masked, pixels), order[0] if masked else axes.i, column, row


def _apply(axes: Axes, made: Chain, form: Stencil, channels: int, lanes: int, name: str, direct: bool = False) -> None:
    """One depthwise convolution and its activation as the chain's new value; `direct`: of the map as it lies.

    Few taps are written out. Of many only a row is, summed over the rows in accumulators: LLVM takes seconds for 49
    taps of 8 pixels, and its code is half as fast.
    """
    hl, (i, b, x, y) = halide(), (axes.i, axes.b, axes.x, axes.y)
    (r, s), (sh, sw), (dh, dw), (top, _, left, _) = form.kernel, form.stride, form.dilation, form.padding
    taps, start = None, hl.f32(0.0)
    if not form.identity:
        taps = image(f"{name}_taps", 2)
        taps.dim(1).set_min(0).set_stride(tile_stride(channels))
        made.arguments.append(taps)
    if form.bias:
        made.arguments.append(image(f"{name}_bias", 1))
        start = made.arguments[-1][b * lanes + i]

    def row(source: Any, k: Any) -> list[Any]:
        values = [source[i, b, x * sw + (j * dw - left), y * sh + (k * dh - top)] for j in range(s)]
        return [v if taps is None else v * taps[b * lanes + i, k * s + j] for j, v in enumerate(values)]

    def result(source: Any, suffix: str = "") -> Any:
        func = hl.Func(name + suffix)
        if written_out(form):
            terms = [term for k in range(r) for term in row(source, k)]
            total = sum(terms[1:], start + terms[0] if form.bias else terms[0])
        else:
            made.sums = hl.Func(f"{name}_sums")
            made.sums[i, b, x, y] = start
            first, *others = row(source, hl.RDom([(0, r)], f"{name}_each")[0])
            made.sums[i, b, x, y] += sum(others, first)
            total = made.sums[i, b, x, y]
        func[i, b, x, y] = activate(form.activation, total, i, b, x, y)
        return func

    if direct:
        made.pieces = _in_place(axes, made, form, result)
    else:
        made.value = result(made.value)
    made.h, made.w = form.size(made.h, made.w)


def written_out(form: Stencil) -> bool:
    """Whether all taps are one expression."""
    return form.kernel[0] * form.kernel[1] <= MOST_WRITTEN_OUT or form.kernel[0] == 1


def _in_place(axes: Axes, made: Chain, form: Stencil, result: Callable[..., Any]) -> list[Columns]:
    """A stencil (of stride 1) of the map itself: the columns whose taps all lie inside, and those beside them.

    Of rows above and below the map none is read either: Halide makes loops of their own for those that reach there.
    """
    hl, (i, b, x, y), rows = halide(), (axes.i, axes.b, axes.x, axes.y), made.value
    top, bottom, left, right = form.padding
    if top or bottom:
        rows, source = hl.Func("rows"), made.value
        inner = source[i, b, x, hl.clamp(hl.likely(y), 0, made.h - 1)]
        rows[i, b, x, y] = hl.select((y < 0) | (y >= made.h), 0.0, inner)
    width = form.size(made.h, made.w)[1]
    pieces = [Columns(result(rows), left, width - (left + right))]
    for name, count, first, inside, l1_fused in (
        ("left", left, 0, x >= 0, hl.max(x, 0)),
        ("right", right, width - right, x < made.w, hl.min(x, made.w - 1)),
    ):
        if count:
            beside = hl.Func(f"beside_{name}")
            beside[i, b, x, y] = hl.select(inside, rows[i, b, l1_fused, y], 0.0)
            pieces.append(Columns(result(beside, name), first, count, count))
    return pieces


def schedule_chain(axes: Axes, made: Chain, consumer: Any, loop: Any, lanes: int, from_memory: bool) -> None:
    """What lies between the stencils, for each vector of channels of the consumer anew."""
    for index, step in enumerate(made.between):
        func, order = step.func, [axes.y, axes.b]
        if index == 0 and from_memory:
            func.compute_root()
            order = [axes.b, axes.y]
        else:
            func.compute_at(consumer, loop)
        func.bound_extent(axes.i, lanes).vectorize(axes.i, lanes)
        for stage, loops in enumerate(step.loops):
            schedule_inside(axes, func, stage, loops, order, step.sums, lanes, by_pixel=index == 0 and from_memory)
        for border in range(len(step.loops), func.num_update_definitions()):
            func.update(border).vectorize(axes.i, lanes)


def schedule_inside(
    axes: Axes, func: Any, stage: int, loops: Loops, outer: list[Any], sums: Any, lanes: int, by_pixel: bool = False
) -> None:
    """A stage of `inside`: a vector, the pixels of a tile written out, tiles (of a strip), rows, strips; vectors.

    `outer`: the variables that are left, from the innermost. `by_pixel`: vectors within tiles.
    """
    update, lane = func.update(stage), loops.order[0] if loops.masked else axes.i
    (pixel, tile), strips = loops.order[loops.masked : loops.masked + 2], loops.order[loops.masked + 2 :]
    if by_pixel:
        update.reorder(lane, pixel, outer[0], tile, *strips, *outer[1:]).unroll(pixel)
    else:
        update.reorder(lane, pixel, tile, *outer[:-1], *strips, outer[-1]).unroll(pixel)
    (update.allow_race_conditions() if loops.masked else update).vectorize(lane, lanes)
    if sums is not None:
        schedule_sums(axes, sums, func, loops.tile, lanes, loops.pixels)


def schedule_sums(axes: Axes, sums: Any, func: Any, loop: Any, lanes: int, pixels: int) -> None:
    """The accumulators of a stencil of many taps, in registers, within the tile loop of their stage.

    How many pixels a tile has is said: of some strides with dilation Halide does not see it.
    """
    sums.compute_at(func, loop).bound_extent(axes.i, lanes).bound_extent(axes.x, pixels)
    sums.vectorize(axes.i, lanes).unroll(axes.x)
    update = sums.update()
    update.reorder(axes.i, axes.x, *sums.rvars(0)).vectorize(axes.i, lanes).unroll(axes.x)
