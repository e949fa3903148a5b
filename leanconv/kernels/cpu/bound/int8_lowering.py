"""From a quantized form and its weights to the steps of a plan."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.int8_packing import padded_channels
from leanconv.kernels.cpu.bound.int8_plan import Around, Part, Plan, Sums, sums
from leanconv.kernels.cpu.runtime import int8_abi as abi
from leanconv.ops.forms import Pair, Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.quantized import PerChannel, Quantization, Quantized, multipliers, rounded_ratio, unit
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

Addend = tuple[int, Quantization] | None
NONE = torch.zeros(0)


def padded(weights: Tensor) -> Tensor:
    """`outputs channels` with channels rounded up to fours."""
    return torch.nn.functional.pad(weights, (0, -weights.shape[1] % 4))


def readable(plan: Plan, part: Part) -> bool:
    """Whether a product may read the channels where they lie: whole fours of bytes."""
    return plan.places[part.place].element == abi.UINT8 and (part.channels % 4 == 0 or not plan.in_memory(part.place))


def run_of(part: Part, row: int = 0, column: int = 0) -> abi.Run:
    """All channels of a part, at that row and column from the pixel."""
    return abi.Run(part.place, row, column, part.first, -(-part.channels // 4), 0)


def pixelwise(
    plan: Plan, parts: Sequence[Part], weight: Tensor, strides: Pair = (1, 1)
) -> list[tuple[abi.Run, list[Tensor]]]:
    """The runs of a 1×1 `O C` over a concatenation, copied first where a part cannot be read as it lies."""
    if not all(readable(plan, part) for part in parts):
        place = plan.places[parts[0].place]
        channels = sum(part.channels for part in parts)
        into = plan.scratch(-(-channels // 4) * 4, (place.h, place.w))
        plan.copy(parts, into)
        parts = [Part(into, channels)]
    pieces = weight.split([part.channels for part in parts], 1)
    return [(run_of(part), [padded(piece)]) for part, piece in zip(parts, pieces, strict=True)]


def product_of(
    plan: Plan,
    parts: Sequence[Part],
    channels: PerChannel,
    weights: Sequence[Tensor],
    into: int,
    activation: str,
    output: Quantization | None,
    addend: Addend = None,
    strides: Pair = (1, 1),
    blended: bool = False,
    factors: bool = False,
) -> None:
    """A 1×1 with weights, scale and bias over a concatenation."""
    weight, scale, bias = weights
    weight, per = weight.reshape(len(bias), -1), unit(activation, output)
    made = sums([weight], [channels.zero_point], bias, multipliers(scale, per))
    finish = plan.finish(activation, output, made.most, addend, unit=per, blended=blended, factors=factors)
    plan.product(pixelwise(plan, parts, weight), into, [(0, 0)], [made], finish, strides)


def around(stencil: Stencil, split: bool = True) -> Around:
    """What a stencil reads around its map."""
    _, _, left, right = stencil.padding
    return Around(left, right, stencil.stride[1] if split else 1, any(stencil.padding))


class SeparableSteps:
    """The steps of a separable convolution: stage after stage, each stencil from a map of its own channels."""

    def __init__(self, plan: Plan, form: Quantized, kind: Separable, weights: Sequence[Tensor]) -> None:
        self.plan, self.form, self.kind, self.left, self.inner = plan, form, kind, list(weights), list(form.inner)

    def run(self, parts: list[Part], channels: PerChannel, size: Pair, into: int, addend: Addend, gate: int) -> None:
        """From the input's parts into the place `into` of the caller. gate: its pointer, -1 for none."""
        kind, stages, strides = self.kind, list(self.kind.stages), (1, 1)
        if self._only_skips(channels):
            strides, self.inner, stages = stages[0][0].stride, self.inner[1:], []
        for index, stage in enumerate(stages):
            size = stage[0].size(*size)
            following = stages[index + 1] if index + 1 < len(stages) else ()
            if not following and kind.out_channels is None:
                return self._last_stage(stage, parts, channels, size, into, addend)
            by = [self.inner.pop(0) for _ in stage]
            made = []
            for stencil, q in zip(stage, by, strict=True):
                target = self._between(stencil, q, following if len(stage) == 1 else (), size)
                self._stencil(stencil, parts, channels, target, stencil.activation, q)
                made.append(Part(target, stencil.channels))
            parts, channels = made, PerChannel.of(by, [s.channels for s in stage])
        if gate >= 0:
            parts, channels = self._gated(parts, channels, size, gate)
        if kind.out_channels is not None:
            product_of(self.plan, parts, channels, self.left, into, kind.activation, self.form.output, addend, strides)
        elif not stages:
            self._last_stage((Stencil(0, kind.middle, identity=True),), parts, channels, size, into, addend)
        return None

    def _only_skips(self, channels: PerChannel) -> bool:
        """Whether one identity that changes no number stands before the 1×1, which then skips the pixels itself."""
        kind = self.kind
        if len(kind.stages) != 1 or len(kind.stages[0]) != 1 or kind.out_channels is None or kind.gate or kind.residual:
            return False
        (stencil,), by = kind.stages[0], self.inner[0]
        same = bool((channels.scale == by.scale).all() and (channels.zero_point == by.zero_point).all())
        whole = stencil.first == 0 and stencil.channels == len(channels.scale)
        return stencil.identity and stencil.activation == "none" and same and whole

    def _between(self, stencil: Stencil, by: Quantization, following: Sequence[Stencil], size: Pair) -> int:
        """Room for a stencil's result, with the border that the next one reads if it reads it there."""
        pixel, direct = padded_channels(stencil.channels), len(following) == 1 and following[0].stride[1] == 1
        if not direct or following[0].channels != stencil.channels:
            return self.plan.scratch(pixel, size)
        return self.plan.scratch(pixel, size, around(following[0]), torch.full((pixel,), by.zero_point))

    def _source(self, stencil: Stencil, parts: Sequence[Part], channels: PerChannel) -> int:
        """The map of exactly the stencil's channels, with its border: that of the stage before, or a copy."""
        plan, part = self.plan, parts[0]
        place, wanted = plan.places[part.place], around(stencil)
        if len(parts) == 1 and not plan.in_memory(part.place) and part.channels == stencil.channels:
            fits = place.border or not wanted.border
            sides = place.left >= wanted.left and place.columns >= place.left + place.w + wanted.right
            if fits and sides and place.split == wanted.split and place.pixel == padded_channels(part.channels):
                return part.place
        chosen = plan.gathered(parts, stencil.first, stencil.channels)
        fill = channels.part(stencil).zero_point
        into = plan.scratch(padded_channels(stencil.channels), (place.h, place.w), wanted, fill)
        plan.copy(chosen, into)
        return into

    def _stencil(
        self,
        stencil: Stencil,
        parts: Sequence[Part],
        channels: PerChannel,
        into: int,
        activation: str,
        output: Quantization | None,
        addend: Addend = None,
    ) -> None:
        own, per = channels.part(stencil), unit(activation, output)
        if stencil.identity:
            taps = torch.ones(stencil.channels, 1, 1, 1, dtype=torch.int8)
            scale, bias = own.scale, torch.zeros(stencil.channels, dtype=torch.int32)
        else:
            taps, scale, bias = (self.left.pop(0) for _ in range(3))
        taps = taps.reshape(stencil.channels, *stencil.kernel)
        made = sums([taps], [own.zero_point[:, None]], bias, multipliers(scale, per))
        finish = self.plan.finish(activation, output, made.most, addend, unit=per)
        self.plan.stencil(self._source(stencil, parts, channels), into, stencil, taps, made, finish)

    def _last_stage(
        self,
        stage: Sequence[Stencil],
        parts: Sequence[Part],
        channels: PerChannel,
        size: Pair,
        into: int,
        addend: Addend,
    ) -> None:
        """Stencils whose results are the output's channels: straight into it where a pixel is as wide as its room."""
        plan, output, at = self.plan, self.form.output, 0
        made: list[Part] = []
        for stencil in stage:
            pixel = padded_channels(stencil.channels)
            direct = len(stage) == 1 and pixel == stencil.channels
            target = into if direct else plan.scratch(pixel, size, element=plan.places[into].element)
            added = addend
            if addend is not None and not (direct and plan.places[addend[0]].pixel == pixel):
                copied = plan.scratch(pixel, size)
                plan.copy([Part(addend[0], stencil.channels, at)], copied)
                added = copied, addend[1]
            self._stencil(stencil, parts, channels, target, self.kind.activation, output, added)
            made.append(Part(target, stencil.channels))
            at += stencil.channels
        if made[0].place != into:
            plan.copy(made, into)

    def _gated(
        self, parts: Sequence[Part], channels: PerChannel, size: Pair, gate: int
    ) -> tuple[list[Part], PerChannel]:
        """The map behind the gate, with the quantization that is left."""
        plan, (by,) = self.plan, self.inner
        whole = Stencil(0, len(channels.scale), identity=True)
        source, into = self._source(whole, parts, channels), plan.scratch(padded_channels(whole.channels), size)
        taps = torch.ones(whole.channels, 1, 1, dtype=torch.int8)
        zero = torch.zeros(whole.channels, dtype=torch.int32)
        made = sums([taps], [channels.zero_point[:, None]], zero, multipliers(channels.scale, by.scale))
        finish = plan.finish("none", by, 2.0**31, factors=True)  # a gate may be any number
        plan.factors.first, plan.factors.width = gate, whole.channels
        plan.stencil(source, into, whole, taps, made, finish)
        return [Part(into, whole.channels)], PerChannel.of([by], [whole.channels])


def grouped_steps(
    plan: Plan,
    form: Quantized,
    kind: Grouped,
    weights: Sequence[Tensor],
    parts: list[Part],
    channels: PerChannel,
    size: Pair,
    into: int,
    addend: Addend,
) -> None:
    """The steps of a grouped convolution: a copy, group by group and with a border; products tap by tap; the 1×1."""
    g, o, c = kind.groups, kind.out_channels, sum(kind.channels)
    each, filters = c // g, o // g
    room = -(-each // 4) * 4  # bytes of a group of a pixel
    inputs = torch.arange(c).view(-1, g).T if kind.interleaved else torch.arange(c).view(g, -1)  # G C/G
    outputs = torch.arange(o).view(-1, g).T if kind.interleaved else torch.arange(o).view(g, -1)  # G O/G
    layout = torch.nn.functional.pad(inputs, (0, room - each), value=-1).flatten()  # a channel of each byte
    fill = torch.where(layout < 0, 0, channels.zero_point[layout])
    (sh, sw), (dh, dw), (top, _, left, right) = kind.stride, kind.dilation, kind.padding
    r, s = kind.kernel
    source = plan.scratch(g * room, _size(plan, parts[0]), Around(left, right, border=any(kind.padding)), fill)
    if g == 1 or (room == each and not kind.interleaved):
        plan.copy(parts, source)
    else:
        if len(parts) > 1 or plan.places[parts[0].place].element != abi.UINT8:
            plain = plan.scratch(c, _size(plan, parts[0]))
            plan.copy(parts, plain)
            parts = [Part(plain, c)]
        plan.copy(parts, source, layout.clamp_min(0))
    remaining = list(weights)
    taps = remaining.pop(0).view(g, filters, each, r, s)
    beside = remaining.pop(0).reshape(o, c) if kind.pointwise else None
    scale, bias = remaining.pop(0), remaining.pop(0)
    own_act, own_output = kind.activation, form.output
    if kind.project is not None:
        own_act, own_output = kind.inner_activation, form.inner[0]
    per = unit(own_act, own_output)
    found: list[Sums] = []
    for group, rows in enumerate(outputs):
        zeros = [channels.zero_point[inputs[group]].repeat_interleave(r * s)]
        many = [taps[group].flatten(1)]
        if beside is not None:
            many.append(beside[rows])
            zeros.append(channels.zero_point)
        found.append(sums(many, zeros, bias[rows], multipliers(scale[rows], per)))
    runs = []
    merged = dw == 1 and g == 1 and s > 1
    for row in range(r):
        columns = 1 if merged else s
        for column in range(columns):
            if merged:  # the taps of a row lie side by side
                pieces = [padded_taps(taps[0, :, :, row].transpose(1, 2), room).flatten(1)]
                quads = s * room // 4
            else:
                pieces = [padded(taps[group, :, :, row, column]) for group in range(g)]
                quads = room // 4
            run = abi.Run(source, row * dh - top, column * dw - left, 0, quads, 1)
            runs.append((run, pieces))
    if beside is not None:
        run = abi.Run(source, r // 2 * dh - top, s // 2 * dw - left, 0, g * room // 4, 0)
        there = torch.where(layout < 0, 0, beside[:, layout]).to(torch.int8)
        runs.append((run, [there[outputs[group]] for group in range(g)]))
    most = max(each_sum.most for each_sum in found)
    if kind.project is not None:
        spaced = -(-filters // 4) * 4
        between = plan.scratch(g * spaced, size)
        finish = plan.finish(own_act, own_output, most, unit=per)
        plan.product(runs, between, [(i * spaced, i * room) for i in range(g)], found, finish, (sh, sw))
        project, *rest = remaining
        project = project.reshape(kind.project, o)[:, outputs]  # O' G O/G
        wide = torch.nn.functional.pad(project, (0, spaced - filters)).flatten(1)
        by = PerChannel.of([form.inner[0]], [g * spaced])
        product_of(plan, [Part(between, g * spaced)], by, [wide, *rest], into, kind.activation, form.output, addend)
        return
    places = [(i * filters, i * room) for i in range(g)]
    if not kind.interleaved or g == 1:
        finish = plan.finish(own_act, own_output, most, addend, unit=per)
        plan.product(runs, into, places, found, finish, (sh, sw))
        return
    if addend is not None:
        copied = plan.scratch(o, size)
        plan.copy([Part(addend[0], o)], copied, outputs.flatten())
        addend = copied, addend[1]
    by_group = plan.scratch(o, size, element=plan.places[into].element)
    finish = plan.finish(own_act, own_output, most, addend, unit=per)
    plan.product(runs, by_group, places, found, finish, (sh, sw))
    plan.copy([Part(by_group, o)], into, outputs.flatten().argsort())


def padded_taps(taps: Tensor, room: int) -> Tensor:
    """`O S C` with as many channels as a pixel has bytes."""
    return torch.nn.functional.pad(taps, (0, room - taps.shape[2]))


def _size(plan: Plan, part: Part) -> Pair:
    place = plan.places[part.place]
    return place.h, place.w


def upsample_steps(
    plan: Plan,
    form: Quantized,
    kind: Upsample,
    weights: Sequence[Tensor],
    parts: Sequence[Part],
    channels: PerChannel,
    size: Pair,
    out: int,
) -> None:
    """A product for each row of the factor: the results of a pixel's columns lie side by side."""
    weight, scale, bias = weights
    (h, w), k, o = size, kind.factor, kind.out_channels
    line, dtype = w * k * o, form.dtype
    for i in range(k):
        into = plan.memory(out, (h, w), k * o, h * k * line, dtype, i * line, k * line)
        rows = weight[:, :, i].permute(2, 1, 0).reshape(k * o, -1)
        product_of(plan, parts, channels, [rows, scale.repeat(k), bias.repeat(k)], into, kind.activation, form.output)


def gated_sum_steps(
    plan: Plan,
    form: Quantized,
    kind: GatedSum,
    weights: Sequence[Tensor],
    parts: Sequence[Part],
    channels: PerChannel,
    into: int,
    a: int,
    averages: int,
) -> None:
    """The product that blends, and what its factors are computed from. averages: pointer of the first."""
    weight, scale, bias, *affine = weights
    by, per = form.addend, unit(kind.activation, form.output)
    assert by is not None
    factor = affine[0] if affine else torch.ones(kind.width)
    third = multipliers(affine[1], per) if affine else torch.zeros(kind.width)
    plain = weight.reshape(kind.width, -1)
    own = sums([plain], [channels.zero_point], bias, multipliers(scale, per) * factor.abs())
    most = own.most + 255 * float(factor.abs().max()) * rounded_ratio(by.scale, per) + float(third.abs().max())
    made = replace(own, multipliers=multipliers(scale, per))
    finish = plan.finish(kind.activation, form.output, most, (a, by), unit=per, blended=True, factors=True)
    plan.product(pixelwise(plan, parts, plain), into, [(0, 0)], [made], finish)
    f = plan.factors
    f.kind, f.width, f.parts, f.first = 1, kind.width, len(kind.channels), averages
    f.sizes = plan.array(abi.I32, list(kind.channels))
    f.inverse = plan.array(abi.F32, [q.inverse for q in form.inputs])
    f.weights, f.bias, f.scale = plan.pack(plain.T), plan.pack(bias), plan.pack(scale)
    f.b_scale, f.factor, f.third = plan.pack(made.multipliers), plan.pack(factor), plan.pack(third)
    f.a_scale = rounded_ratio(by.scale, per)
