"""From the weights of a float form to those of `ops.quantized`: int8 with a scale per output channel, int32 bias."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.quantized import MOST_WEIGHT, PerChannel, Quantized, channels_of
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

_MOST_BIAS = 1 << 22  # steps of a sum; a float32 has every whole number up to four times of it


def integer_weights(form: Quantized, weights: Sequence[Tensor]) -> list[Tensor]:
    """The weights that `Quantized` asks for, from those of `form.form` in its order, rounded to the nearest.

    The scale of an output channel is the largest of its weights, each times the scale of what it multiplies, over 127.
    It is larger only where the bias would have more than 2²² steps.
    """
    kind, left = form.form, [w.detach().double() for w in weights]
    channels = PerChannel.of(form.inputs, channels_of(kind))
    if isinstance(kind, MaxPool):
        return []
    if isinstance(kind, Separable):
        return _separable(form, kind, channels, left)
    if isinstance(kind, Grouped):
        return _grouped(form, kind, channels, left)
    scales = channels.scale.double()
    if isinstance(kind, Upsample):
        (weight,), rest = _rounded([(left[0] * scales[:, None, None, None]).transpose(0, 1)], left[1:])
        return [weight.transpose(0, 1).contiguous(), *rest]
    assert isinstance(kind, GatedSum)
    weight = left.pop(0).reshape(kind.width, -1, 1, 1) * scales[:, None, None]
    (rounded,), rest = _rounded([weight], [left.pop(0)] if kind.bias else [])
    return [rounded, *rest, *[v.float() for v in left]]


def integer_shapes(form: Quantized) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each of the weights that `integer_weights` gives."""
    kind, c = form.form, sum(channels_of(form.form))
    made: list[tuple[torch.dtype, tuple[int, ...]]] = []

    def convolution(o: int, *weights: tuple[int, ...]) -> None:
        made.extend([*[(torch.int8, size) for size in weights], (torch.float32, (o,)), (torch.int32, (o,))])

    if isinstance(kind, Separable):
        for s in [s for stage in kind.stages for s in stage if not s.identity]:
            convolution(s.channels, (s.channels, 1, *s.kernel))
        if kind.out_channels is not None:
            convolution(kind.out_channels, (kind.out_channels, kind.middle, 1, 1))
    elif isinstance(kind, Grouped):
        o = kind.out_channels
        convolution(o, (o, c // kind.groups, *kind.kernel), *[(o, c, 1, 1)] * kind.pointwise)
        if kind.project is not None:
            convolution(kind.project, (kind.project, o, 1, 1))
    elif isinstance(kind, Upsample):
        convolution(kind.out_channels, (c, kind.out_channels, kind.factor, kind.factor))
    elif isinstance(kind, GatedSum):
        convolution(kind.width, (kind.width, c, 1, 1))
        made += [(torch.float32, (kind.width,))] * (2 * kind.affine)
    return made


def _rounded(weights: Sequence[Tensor], bias: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights `O ...` of one sum as int8; its scales and biases."""
    o = len(weights[0])
    largest = torch.cat([w.reshape(o, -1) for w in weights], 1).abs().amax(1)
    given = bias[0] if bias else torch.zeros(o, dtype=torch.float64)
    scale = torch.maximum(largest / MOST_WEIGHT, given.abs() / _MOST_BIAS).float()
    scale = torch.where(scale < 1e-30, 1.0, scale)  # a channel of zeros
    steps = scale.double()
    made = [torch.round(w / steps.view(-1, *[1] * (w.dim() - 1))) for w in weights]
    rounded = [w.clamp(-MOST_WEIGHT, MOST_WEIGHT).to(torch.int8) for w in made]
    return rounded, [scale, torch.round(given / steps).to(torch.int32)]


def _separable(form: Quantized, kind: Separable, channels: PerChannel, left: list[Tensor]) -> list[Tensor]:
    made: list[Tensor] = []
    inner = list(form.inner)
    for stage in kind.stages:
        for s in stage:
            if not s.identity:
                scale = channels.part(s).scale.double()[:, None, None, None]
                taps = left.pop(0).reshape(s.channels, 1, *s.kernel) * scale
                weights, rest = _rounded([taps], [left.pop(0)] if s.bias else [])
                made += [*weights, *rest]
        if inner:
            channels = PerChannel.of(inner[: len(stage)], [s.channels for s in stage])
            inner = inner[len(stage) :]
    if kind.gate:
        channels = PerChannel.of(inner, [kind.middle])
    if kind.out_channels is not None:
        weight = left.pop(0).reshape(kind.out_channels, kind.middle, 1, 1) * channels.scale.double()[:, None, None]
        weights, rest = _rounded([weight], [left.pop(0)] if kind.bias else [])
        made += [*weights, *rest]
    return made


def _grouped(form: Quantized, kind: Grouped, channels: PerChannel, left: list[Tensor]) -> list[Tensor]:
    g, o = kind.groups, kind.out_channels
    scales = channels.scale.double()
    each = scales.view(-1, g).T if kind.interleaved else scales.view(g, -1)  # G C/G
    filters = (left.pop(0).unflatten(0, (g, -1)) * each[:, None, :, None, None]).flatten(0, 1)
    # Filters in the natural order of their outputs, as pointwise and bias are.
    if kind.interleaved:
        filters = filters.unflatten(0, (g, -1)).transpose(0, 1).flatten(0, 1)
    weights = [filters]
    if kind.pointwise:
        weights.append(left.pop(0).reshape(o, -1, 1, 1) * scales[:, None, None])
    rounded, rest = _rounded(weights, [left.pop(0)] if kind.bias else [])
    if kind.interleaved:
        rounded[0] = rounded[0].unflatten(0, (-1, g)).transpose(0, 1).flatten(0, 1)
    made = [*rounded, *rest]
    if kind.project is not None:
        weight = left.pop(0).reshape(kind.project, o, 1, 1) * form.inner[0].scale
        (project,), rest = _rounded([weight], [left.pop(0)] if kind.project_bias else [])
        made += [project, *rest]
    return made
