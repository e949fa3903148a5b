"""The integer reference of quantized primitives (`ops.quantized`), in plain PyTorch: exact, slow, any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.ops.elementary import ELEMENTARY, sigmoid
from leanconv.ops.forms import check_channels, joined, padded_conv
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.pool import MaxPool, max_pool
from leanconv.ops.quantized import (
    CLAMPS,
    PerChannel,
    Quantization,
    Quantized,
    channels_of,
    limits,
    multipliers,
    rounded_ratio,
    unit,
)
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample


def quantized(x: Tensor, by: Quantization) -> Tensor:
    """A float32 map as uint8: clamp(round(x · float32(1 / scale)) + zero_point, 0, 255). NaN is stored as zero.

    A uint8 map stays as it is.
    """
    if x.dtype == torch.uint8:
        return x
    steps = torch.round(x.float().nan_to_num(0.0, torch.inf, -torch.inf) * by.inverse)
    return (steps.clamp(-by.zero_point, 255 - by.zero_point) + by.zero_point).to(torch.uint8)


def dequantized(q: Tensor, by: Quantization) -> Tensor:
    """A uint8 map as float32."""
    return (q.float() - by.zero_point) * by.scale


def stored(v: Tensor, activation: str, output: Quantization | None) -> Tensor:
    """float32 numbers in steps of `unit` after the activation, as the output stores them; channels_last."""
    if output is None:
        y = ELEMENTARY[activation](v)
    else:
        low, high = 0, 255
        if activation in CLAMPS:
            low, high = limits(activation, output)
        else:
            v = ELEMENTARY[activation](v) * output.inverse
        zero = output.zero_point
        y = (torch.round(v).clamp(low - zero, high - zero) + zero).to(torch.uint8)
    return y.contiguous(memory_format=torch.channels_last)


def averaged(q: Tensor, by: Quantization) -> Tensor:
    """The average of a quantized map, float32(Σ (q - zero_point) · (scale / pixels)) in float64: `N C`."""
    pixels = q.shape[2] * q.shape[3]
    total = q.sum((2, 3), dtype=torch.int64) - by.zero_point * pixels
    return (total.double() * (by.scale / pixels)).float()


def gate_factors(
    form: Quantized, weights: Sequence[Tensor], a_average: Tensor, averages: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """f₁, f₂, f₃ of a gated sum, `N O` in float32, from the averages of its maps (`N O`, `N C_i`).

    The average of b is that of its inputs, in their steps (average times float32(1 / scale)), times the weights: added
    in float32, channel after channel.
    """
    weight, scale, bias, *affine = weights
    assert isinstance(form.form, GatedSum)
    assert form.addend is not None
    per = unit(form.form.activation, form.output)
    steps = torch.cat(
        [m * q.inverse for m, q in zip((x.float() for x in averages), form.inputs, strict=True)], 1
    )  # N C
    rows = weight.reshape(form.width, -1).float()  # O C
    total = bias.float().expand(steps.shape[0], -1)
    for c in range(steps.shape[1]):
        total = total + steps[:, c, None] * rows[:, c]
    gate = sigmoid(a_average.float() - total * scale)
    factor = affine[0] if affine else torch.ones(form.width)
    first, second = gate * factor, (1.0 - gate) * factor
    third = multipliers(affine[1], per) if affine else torch.zeros(form.width)
    return (
        first * rounded_ratio(form.addend.scale, per),
        second * multipliers(scale, per),
        third.expand_as(first),
    )


def primitive(
    form: Quantized, maps: Sequence[Tensor | None], weights: Sequence[Tensor], averages: Sequence[Tensor] = ()
) -> tuple[Tensor, Tensor]:
    """Run a quantized primitive in plain PyTorch: exact, slow.

    Args:
        maps: as `kernels.interface.Bound` lists them: a of a gated sum, inputs, residual, gate (None where the form
            has none); uint8, or float32 to be quantized. A gate is `N M` in float32.
        weights: in the order that `Quantized` says.
        averages: of a gated sum's maps, in float32.
    Returns: `N O P Q` in `form.dtype` (channels_last), and its average `N O` in float32 (of no numbers without).
    """
    kind, left = form.form, list(weights)
    first = isinstance(kind, GatedSum)
    inputs = [x for x in maps[first : first + len(form.inputs)] if x is not None]
    rest = [maps[0]] if first else list(maps[len(form.inputs) :])
    check_channels(inputs, channels_of(kind))
    x = joined([quantized(each, by) for each, by in zip(inputs, form.inputs, strict=True)])
    channels = PerChannel.of(form.inputs, channels_of(kind))
    addend = None
    if form.addend is not None and rest[0] is not None:
        addend = quantized(rest[0], form.addend).float() - form.addend.zero_point
    if isinstance(kind, MaxPool):
        y = max_pool(x.float(), kind)[0].to(torch.uint8).contiguous(memory_format=torch.channels_last)
    else:
        if isinstance(kind, Separable):
            total, scale = _separable(form, kind, x, channels, left, rest[-1] if kind.gate else None)
        elif isinstance(kind, Grouped):
            total, scale = _grouped(form, kind, channels.centred(x), left)
        elif isinstance(kind, Upsample):
            weight, scale, bias = left
            total = torch.nn.functional.conv_transpose2d(
                channels.centred(x), weight.double(), bias.double(), kind.factor
            )
        else:
            total, scale = _conv(channels.centred(x), left), left[1]
        per = unit(kind.activation, form.output)
        if isinstance(kind, GatedSum):
            assert addend is not None
            f1, f2, f3 = [f[:, :, None, None] for f in gate_factors(form, weights, averages[0], averages[1:])]
            v = (addend * f1 + total.float() * f2) + f3
        else:
            v = total.float() * multipliers(scale, per)[:, None, None]
            if addend is not None and form.addend is not None:
                v = v + addend * rounded_ratio(form.addend.scale, per)
        y = stored(v, kind.activation, form.output)
    none = torch.empty(0, dtype=torch.float32)
    return y, averaged(y, form.output) if form.average and form.output is not None else none


def _conv(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The sum of a 1×1, exact in float64."""
    weight, _, bias = weights[:3]
    return torch.nn.functional.conv2d(x, weight.double().view(len(bias), -1, 1, 1), bias.double())


def _separable(
    form: Quantized, kind: Separable, x: Tensor, channels: PerChannel, left: list[Tensor], gate: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The last sum of a separable convolution (float64) and its scales; without a convolution q - zero_point."""
    inner, total, scale = list(form.inner), channels.centred(x), channels.scale
    for index, stage in enumerate(kind.stages):
        totals, scales, parts, by = [], [], [], []
        for s in stage:
            part = channels.part(s)
            source = part.centred(x[:, s.first : s.first + s.channels])
            if s.identity:
                totals.append(source[:, :, :: s.stride[0], :: s.stride[1]])
                scales.append(part.scale)
            else:
                taps, each, bias = left.pop(0), left.pop(0), left.pop(0)
                totals.append(
                    padded_conv(source, taps.double(), bias.double(), s.stride, s.dilation, s.padding, s.channels)
                )
                scales.append(each)
            if index + 1 < len(kind.stages) or kind.out_channels is not None:
                by.append(inner.pop(0))
                v = totals[-1].float() * multipliers(scales[-1], unit(s.activation, by[-1]))[:, None, None]
                parts.append(stored(v, s.activation, by[-1]))
        if not by:
            return torch.cat(totals, 1), torch.cat(scales)
        x, channels = torch.cat(parts, 1), PerChannel.of(by, [s.channels for s in stage])
        total, scale = channels.centred(x), channels.scale
    if gate is not None:
        v = total.float() * (gate.float() * multipliers(scale, inner[0].scale))[:, :, None, None]
        x, channels = stored(v, "none", inner[0]), PerChannel.of(inner, [x.shape[1]])
        total = channels.centred(x)
    return (total, scale) if kind.out_channels is None else (_conv(total, left), left[1])


def _grouped(form: Quantized, kind: Grouped, x: Tensor, left: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The last sum of a grouped convolution (float64) and its scales."""
    weights = [left.pop(0).double() for _ in range(1 + kind.pointwise)]
    scale, bias = left.pop(0), left.pop(0)
    plain = Grouped(
        (x.shape[1],), kind.out_channels, kind.kernel, kind.stride, kind.dilation, kind.padding, kind.groups,
        kind.interleaved, kind.pointwise, True,
    )  # fmt: skip
    total, _ = grouped([x], [*weights, bias.double()], plain)
    if kind.project is None:
        return total, scale
    by = form.inner[0]
    v = total.float() * multipliers(scale, unit(kind.inner_activation, by))[:, None, None]
    between = stored(v, kind.inner_activation, by)
    return _conv(between.double() - by.zero_point, left), left[1]
