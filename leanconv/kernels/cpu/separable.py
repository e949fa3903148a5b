"""`ops/separable.py` in Halide, where there is a stencil: padded copy, stencils and projection of a block of rows.

Channels that go through different stencils, or come from different inputs, are tracks of their own; the projection sums
over them.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.activations import activate
from leanconv.kernels.cpu.frontend import halide
from leanconv.kernels.cpu.pieces import (
    STRIP,
    WHOLE,
    Axes,
    Tile,
    bound_output,
    clamped,
    copied,
    padded,
    projection,
    schedule_copy,
    schedule_output,
    schedule_projection,
    schedule_stencil,
    schedule_sums,
    size_after,
    stencil,
    zeros_around,
)  # fmt: skip
from leanconv.kernels.cpu.storage import FLOAT, Storage, image, map_image, weights_image
from leanconv.ops.forms import Stencil


@dataclass(frozen=True)
class Track:
    """Channels that lie side by side in one input and share their stencils; `pixel` numbers from pixel to pixel."""

    pixel: int
    channels: int
    stencils: tuple[Stencil, ...]


@dataclass(frozen=True)
class Core:
    """What one kernel computes; see `Separable`. Without a projection it has one track.

    Args:
        wide: rows are so long that stencils go by strips of columns.
        storage: of the maps; scratch is float32, but for what a product reads.
        out_pixel, residual: numbers from one pixel to the next of the output, and of the map that is added (0: none).
    """

    tracks: tuple[Track, ...]
    out_channels: int | None
    out_pixel: int
    bias: bool
    activation: str
    residual: int
    gate: bool
    wide: bool = False
    storage: Storage = FLOAT


@dataclass
class _Chain:
    """The Funcs of one track in order, its arguments, and the width of its output."""

    funcs: list[Any]
    arguments: list[Any]
    width: Any
    copies: bool  # the first Func is a padded copy, or made like one
    sums: dict[str, Any]  # accumulators of a Func, by its name


def pipeline(core: Core, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments, in this order.

    Per track: the input `c x y`, then taps and bias of each stencil, then the packed 1×1 and the gate. At last the bias
    and the residual. The output is `m x y` (`c x y` without a projection).
    """
    hl, axes, arguments, storage = halide(), Axes(), [], core.storage
    out, chains, parts = hl.Func("out"), [], []
    c, x, y = axes.c, axes.x, axes.y
    for index, track in enumerate(core.tracks):
        chain = _chain(axes, core, index)
        arguments += chain.arguments
        if core.out_channels is not None:
            weights = weights_image(f"w{index}", tile.block, track.channels, storage)
            arguments.append(weights)
            if core.gate:
                gate = image(f"gate{index}", 1)
                arguments.append(gate)
                func = hl.Func(f"gated{index}")
                factors = gate if track.channels % WHOLE == 0 else _held(axes, gate, track.channels, tile)
                func[c, x, y] = storage.factor(chain.funcs[-1][c, x, y] * factors[c])
                chain.funcs.append(func)
            parts.append((storage.factors(chain.funcs[-1]), track.channels, weights))
        chains.append(chain)
    added: Any = None
    channel = c if core.out_channels is None else axes.m
    if core.residual:
        residual = map_image("residual", core.residual, storage)
        added = storage.read(residual)[channel, hl.min(x, chains[0].width - 1), y]
    if core.out_channels is None:
        value = chains[0].funcs[-1][c, x, y]
        out[c, x, y] = storage.narrow(activate(core.activation, value if added is None else value + added, c, x, y))
        _schedule_depthwise(axes, out, core, chains[0], tile)
        _schedule_chain(axes, chains[0], core, 0, tile, last=len(chains[0].funcs) - 1)
    else:
        start: Any = hl.f32(0.0)
        if core.bias:
            bias = image("bias", 1)
            arguments.append(bias)
            start = bias[axes.m]
        acc = projection(axes, parts, start, tile, storage)
        value = acc[axes.m, x, y]
        out[axes.m, x, y] = storage.narrow(
            activate(core.activation, value if added is None else value + added, axes.m, x, y)
        )
        schedule_output(axes, out, core.out_channels, tile, [y])
        acc.compute_at(out, axes.xo)
        schedule_projection(axes, acc, tile, storage)
        for index, chain in enumerate(chains):
            _schedule_chain(axes, chain, core, index, tile, last=len(chain.funcs))
    if core.residual:
        arguments.append(residual)
    bound_output(out, core.out_channels or core.tracks[0].channels, core.out_pixel)
    return out, arguments


def _held(axes: Axes, gate: Any, channels: int, tile: Tile) -> Any:
    """A gate whose channels are no whole vectors: what is read behind its last number is ours."""
    hl = halide()
    func, channel = hl.Func(f"{gate.name()}_held"), hl.RDom([(0, channels)], f"{gate.name()}_channels")[0]
    func[axes.c] = hl.undef(hl.Float(32))
    func[channel] = gate[channel]
    func.compute_root()
    schedule_copy(axes, func, channels, tile, func.update(0))
    return func


def _chain(axes: Axes, core: Core, index: int) -> _Chain:
    hl, track, storage = halide(), core.tracks[index], core.storage
    stored = core.out_channels is not None  # the last Func too is a stage of its own, not part of the output's loop
    source = map_image(f"in{index}", track.pixel, storage)
    source.dim(2).set_min(0)
    w, h = source.dim(1).extent(), source.dim(2).extent()
    first = track.stencils[0]
    chain = _Chain([], [source], w, copies=first.kernel != (1, 1) or any(first.padding), sums={})
    if chain.copies:
        func = padded(axes, storage.read(source), h, w, f"pad{index}", track.stencils[0].padding, track.channels)
        chain.funcs.append(func)
    else:
        func = clamped(axes, storage.read(source), h, w, f"pad{index}")
    for place, form in enumerate(track.stencils):
        packed = bias = None
        name = f"t{index}_{place}"
        if not form.identity:
            packed = image(f"{name}_taps", 2)
            packed.dim(1).set_min(0).set_stride(tile_stride(track.channels))
            chain.arguments.append(packed)
        if form.bias:
            bias = image(f"{name}_bias", 1)
            chain.arguments.append(bias)
        value, sums = stencil(axes, func, form, packed, bias, name)
        channel = None
        if place == 0 and not chain.copies and track.channels % WHOLE and (stored or len(track.stencils) > 1):
            # It reads the map itself: no channels but those that there are, see `copied`.
            each, channel = hl.Func(f"{name}_each"), hl.RDom([(0, track.channels)], f"{name}_channels")[0]
            each[axes.c, axes.x, axes.y] = value
            value, chain.copies = each[channel, axes.x, axes.y], True
        h, w = size_after(form, h, w)
        kind = None
        if stored and place + 1 == len(track.stencils) and not core.gate:
            value, kind = storage.factor(value), storage.factor_type
        sides = track.stencils[place + 1].padding if place + 1 < len(track.stencils) else (0, 0, 0, 0)
        func = zeros_around(axes, value, h, w, name, sides, channel, kind)
        chain.funcs.append(func)
        if sums is not None:
            chain.sums[func.name()] = sums
    chain.width = w
    return chain


def tile_stride(channels: int) -> int:
    """Numbers from one tap of all channels to the next: whole vectors of any width."""
    return -(-channels // 16) * 16


def _schedule_depthwise(axes: Axes, out: Any, core: Core, chain: _Chain, tile: Tile) -> None:
    """The last stencil is part of the output's own loop: its result is stored once."""
    hl, a, channels = halide(), axes, core.tracks[0].channels
    tail = hl.TailStrategy.RoundUp if channels % tile.lanes == 0 else hl.TailStrategy.Predicate
    out.split(a.c, a.co, a.ci, tile.lanes, tail)
    sums = chain.sums.get(chain.funcs[-1].name())
    wide = core.wide and sums is None
    if wide:
        out.split(a.x, a.xs, a.xu, STRIP, hl.TailStrategy.GuardWithIf)
    out.split(a.xu if wide else a.x, a.xo, a.xi, tile.pixels, hl.TailStrategy.PredicateStores)
    out.reorder(a.ci, a.xi, a.xo, a.y, a.co, *([a.xs] if wide else [])).vectorize(a.ci).unroll(a.xi)
    if sums is not None:
        schedule_sums(axes, sums, out, a.xo, tile)


def _schedule_chain(axes: Axes, chain: _Chain, core: Core, track: int, tile: Tile, last: int) -> None:
    """The first `last` Funcs of a track's chain, each for the whole block; what follows them is inlined."""
    channels = core.tracks[track].channels
    for index, func in enumerate(chain.funcs[:last]):
        func.compute_root()
        if index == 0 and chain.copies:
            schedule_copy(axes, func, channels, tile, copied(func, channels))
        else:
            schedule_stencil(axes, func, channels, tile, chain.sums.get(func.name()), core.wide)
