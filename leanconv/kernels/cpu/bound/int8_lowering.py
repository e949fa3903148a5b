"""From a quantized form and its weights to the steps of a plan."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.int8_plan import Around, Part, Plan, Sums, sums
from leanconv.kernels.cpu.runtime import int8_abi as abi
from leanconv.ops.forms import Pair
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.quantized import PerChannel, Quantization, Quantized, multipliers, rounded_ratio, unit
from leanconv.ops.upsample import Upsample

Addend = tuple[int, Quantization] | None


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
