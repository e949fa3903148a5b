"""Depthwise stencils in Halide, one vector of channels after the other: `i b x y` is number i of vector b.

Between two stencils is a copy with a border, of one vector of channels and all rows of the block. It fits the L1 cache,
and each of its cache lines is full. Only pixels inside a map are computed; the border is stored as zeros.
Computing the border, too, would nearly double the work of a 7×1 on a 7×7 map. A first stencil of few taps reads the map
without a copy; the columns whose taps leave the map are then computed apart.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import ElementType, image, map_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes
from leanconv.ops.forms import Stencil

MAX_UNROLLED_TAPS = 11


@dataclass(frozen=True)
class Track:
    """A contiguous slice of an input's channels that goes through the same stencils.

    Args:
        pixel: numbers from one pixel of the input to the next.
        channels: how many.
        stencils: one after the other.
        tiles: pixels computed together, of the input and of each stencil's output; at most a row.
        strips: as `tiles`: width in tiles of a column strip, for cache blocking; 0: no strips.
        from_memory: the input is not in the cache. It is copied pixel by pixel, before the vectors of channels.
        direct: the first stencil reads the input itself, without a copy that has a border.
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
    """A range of output columns that one Halide expression computes: `width` of them from `first` on.

    Args:
        value: the Func `i b x y`, which is inlined.
        tile: columns computed together; None: as the track says.
    """

    value: Any
    first: Any
    width: Any
    tile: int | None = None


@dataclass
class Loops:
    """The loops over the inside of a map.

    Args:
        order: the loops of the RDom, from the innermost.
        pixel, tile: two of them: over the pixels of a tile, and over tiles.
        masked: whether the first loop is over vector lanes; the last vector is masked.
        pixels: of a tile.
    """

    order: list[Any]
    pixel: Any
    tile: Any
    masked: bool
    pixels: int


@dataclass
class Bordered:
    """A map with its border: the Func, the loops of the stages that fill its inside, accumulators or None."""

    func: Any
    loops: list[Loops]
    accumulators: Any


@dataclass
class Chain:
    """The stencils of a track so far.

    Args:
        value: the result of the last one, a Func `i b x y` which is inlined.
        h, w: its size.
        arguments: the kernel's, so far.
        between: the maps with a border between two stencils.
        accumulators: of `value`, or None.
        partial: `value` reads the input itself, whose last vector may have fewer numbers than lanes.
        split_columns: for a map whose columns have several expressions; `value` is then not used.
    """

    value: Any
    h: Any
    w: Any
    arguments: list[Any]
    between: list[Bordered] = field(default_factory=list)
    accumulators: Any = None
    partial: bool = False
    split_columns: list[Columns] = field(default_factory=list)

    @property
    def columns(self) -> list[Columns]:
        """All columns; the first item has most of them."""
        return self.split_columns or [Columns(self.value, 0, self.w)]


def taps_stride(channels: int) -> int:
    """Numbers from one tap of all channels to the next: whole vectors of any width."""
    return -(-channels // 16) * 16


def stencil_chain(axes: Axes, track: Track, index: int, lanes: int, element: ElementType) -> Chain:
    """The stencils of a track, in float32. Arguments: the map `c x y`, then taps and bias of each stencil."""
    hl, (i, b, x, y) = halide(), (axes.i, axes.b, axes.x, axes.y)
    source = map_image(f"in{index}", track.pixel, element)
    source.dim(2).set_min(0)
    func = hl.Func(f"map{index}")
    func[i, b, x, y] = element.widen(source)[b * lanes + i, x, y]
    w, h = source.dim(1).extent(), source.dim(2).extent()
    chain = Chain(func, h, w, [source], partial=track.channels % lanes != 0)
    for place, form in enumerate(track.stencils):
        name = f"t{index}_{place}"
        direct = track.direct and not place
        if not direct and (form.kernel != (1, 1) or any(form.padding) or chain.accumulators is not None):
            _add_border(axes, chain, form, track, place, lanes, f"{name}_in")
        _add_stencil(axes, chain, form, track.channels, lanes, name, direct)
    return chain


def _add_border(axes: Axes, chain: Chain, form: Stencil, track: Track, place: int, lanes: int, name: str) -> None:
    """Store the chain's value in a map with the border that `form` reads."""
    hl, (i, b, x, y), (h, w) = halide(), (axes.i, axes.b, axes.x, axes.y), (chain.h, chain.w)
    (top, bottom, left, right), func = form.padding, hl.Func(name)
    # undef: the stages below write the inside and each side of the border, so nothing needs a first value.
    func[i, b, x, y] = hl.undef(hl.Float(32))
    stages = []
    for number, columns in enumerate(chain.columns):
        loops, lane, column, _ = column_loops(axes, chain, columns, track, place, lanes, f"{name}{number}")
        func[lane, b, column, y] = columns.value[lane, b, column, y]
        stages.append(loops)
    for side, (start, count) in {"left": (-left, left), "right": (w, right)}.items():
        if count:
            func[i, b, hl.RDom([(start, count)], f"{name}_{side}")[0], y] = 0.0
    if top or bottom:
        across = hl.RDom([(-left, w + (left + right))], f"{name}_rows")
        across.where((y < 0) | (y >= h))
        func[i, b, across[0], y] = 0.0
    chain.between.append(Bordered(func, stages, chain.accumulators))
    chain.value, chain.accumulators, chain.partial, chain.split_columns = func, None, False, []


def column_loops(
    axes: Axes,
    chain: Chain,
    columns: Columns,
    track: Track,
    place: int,
    lanes: int,
    name: str,
    gated: bool = False,
    block: tuple[Any, Any] | None = None,
) -> tuple[Loops, Any, Any, Any]:
    """Loop over columns in tiles; the last tile shifts left and overlaps the previous one.

    Args:
        place: which of the track's tiles and strips.
        gated: a gate per channel is read too; it ends with the channels, so the last vector is masked.
        block: the first row and how many; else rows are the variable y, and those outside the map are skipped.
    Returns: the loops, the number in the vector, the column and the row.
    """
    # An RDom instead of split(): its tiles overlap at the end of a row, and `where` skips rows outside the map.
    hl, pixels, strip = halide(), columns.tile or track.tiles[place], 0 if columns.tile else track.strips[place]
    masked = chain.partial or (gated and track.channels % lanes != 0)
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
        domain.where((row >= 0) & (row < chain.h))
    column = hl.min((order[-1] * strip + tile if strip else tile) * pixels, columns.width - pixels) + pixel
    column = columns.first + (pixel if columns.tile else column)
    return Loops(order, pixel, tile, masked, pixels), order[0] if masked else axes.i, column, row


def _add_stencil(
    axes: Axes, chain: Chain, form: Stencil, channels: int, lanes: int, name: str, direct: bool = False
) -> None:
    """Apply one depthwise convolution and its activation to the chain; `direct`: to the map itself.

    Few taps are unrolled. Many taps are unrolled one row at a time, and accumulators sum over the rows. Unrolled in
    full, 49 taps of 8 pixels take LLVM seconds, and its code is half as fast.
    """
    hl, (i, b, x, y) = halide(), (axes.i, axes.b, axes.x, axes.y)
    (r, s), (sh, sw), (dh, dw), (top, _, left, _) = form.kernel, form.stride, form.dilation, form.padding
    taps, start = None, hl.f32(0.0)
    if not form.identity:
        taps = image(f"{name}_taps", 2)
        taps.dim(1).set_min(0).set_stride(taps_stride(channels))
        chain.arguments.append(taps)
    if form.bias:
        chain.arguments.append(image(f"{name}_bias", 1))
        start = chain.arguments[-1][b * lanes + i]

    def row(source: Any, k: Any) -> list[Any]:
        values = [source[i, b, x * sw + (j * dw - left), y * sh + (k * dh - top)] for j in range(s)]
        return [v if taps is None else v * taps[b * lanes + i, k * s + j] for j, v in enumerate(values)]

    def result(source: Any, suffix: str = "") -> Any:
        """The Func of this stencil, applied to `source`."""
        func = hl.Func(name + suffix)
        if unrolls_taps(form):
            terms = [term for k in range(r) for term in row(source, k)]
            total = sum(terms[1:], start + terms[0] if form.bias else terms[0])
        else:
            chain.accumulators = hl.Func(f"{name}_sums")
            chain.accumulators[i, b, x, y] = start
            first, *others = row(source, hl.RDom([(0, r)], f"{name}_each")[0])
            chain.accumulators[i, b, x, y] += sum(others, first)
            total = chain.accumulators[i, b, x, y]
        func[i, b, x, y] = activate(form.activation, total, i, b, x, y)
        return func

    if direct:
        chain.split_columns = _split_columns(axes, chain, form, result)
    else:
        chain.value = result(chain.value)
    chain.h, chain.w = form.size(chain.h, chain.w)


def unrolls_taps(form: Stencil) -> bool:
    """Whether all taps are unrolled into one expression."""
    return form.kernel[0] * form.kernel[1] <= MAX_UNROLLED_TAPS or form.kernel[0] == 1


def _split_columns(axes: Axes, chain: Chain, form: Stencil, result: Callable[..., Any]) -> list[Columns]:
    """A stencil of stride 1 on the map itself: the columns whose taps all lie inside, then those at its two sides.

    Rows above and below the map are not read. `likely` makes Halide peel loops for the rows that reach there.
    """
    hl, (i, b, x, y), rows = halide(), (axes.i, axes.b, axes.x, axes.y), chain.value
    top, bottom, left, right = form.padding
    if top or bottom:
        rows, source = hl.Func("rows"), chain.value
        inner = source[i, b, x, hl.clamp(hl.likely(y), 0, chain.h - 1)]
        rows[i, b, x, y] = hl.select((y < 0) | (y >= chain.h), 0.0, inner)
    width = form.size(chain.h, chain.w)[1]
    columns = [Columns(result(rows), left, width - (left + right))]
    for name, count, first, inside, clamped in (
        ("left", left, 0, x >= 0, hl.max(x, 0)),
        ("right", right, width - right, x < chain.w, hl.min(x, chain.w - 1)),
    ):
        if count:
            side = hl.Func(f"side_{name}")
            side[i, b, x, y] = hl.select(inside, rows[i, b, clamped, y], 0.0)
            columns.append(Columns(result(side, name), first, count, count))
    return columns
