"""Primitives on 8-bit integers: a form of `ops` with the quantization of its maps.

A map is uint8: real value = scale · (q - zero_point), one pair for the whole tensor. A float32 map is quantized where
it is read. A convolution's weights are int8 in [-127, 127] and multiply q - zero_point, so that zeros around a map
count as nothing. Its sum is an exact int32 with a scale per output channel, the bias is an int32 at that scale:

    sum[o] = Σ weight[o,..] · (q - zero_point) + bias[o]         real value: sum[o] · scale[o]

`scale[o]` includes the scales of what the sum reads: weights were multiplied with them before they were rounded.
So a sum over a concatenation of maps with unlike scales is one sum. Each result is stored by

    v = float32(sum) · m[o]  [+ float32(residual's q - zero_point) · r]      m, r: real scales / unit, float32
    q = clamp(round(v) + zero_point, low, high)                               round: ties to even

where `unit` is the output's scale, and ReLU and ReLU6 are low and high. Any other activation sees real values (unit 1)
and follows the steps of `ops.elementary`; its result times float32(1 / scale) is rounded. All float32 steps are
rounded one by one, so that each machine gives the same bits, and a kernel is compared with tolerance 0.
A gated sum blends in float32: v = (q_a - zero_point) · f₁ + float32(sum) · f₂ + f₃. `ops.integer_reference` runs all
of it in plain PyTorch, and `ops.integer_weights` makes the weights from those of a float form.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.forms import Pair, Stencil
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample

MOST_WEIGHT = 127
CLAMPS = ("none", "relu", "relu6")  # activations that are limits of the stored number


@dataclass(frozen=True)
class Quantization:
    """How a map is stored in uint8: real value = scale · (q - zero_point). `scale` is rounded to float32."""

    scale: float
    zero_point: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", float(torch.tensor(self.scale, dtype=torch.float32)))
        if not (0 < self.scale < math.inf and 1 / self.scale < 3e38 and 0 <= self.zero_point <= 255):
            raise BadInput(f"{self} needs a positive float32 scale and a zero point from 0 to 255")

    @property
    def inverse(self) -> float:
        """float32(1 / scale)."""
        return rounded_ratio(1.0, self.scale)


@dataclass(frozen=True)
class Quantized:
    """A primitive on quantized maps. Shapes, sizes and activations are those of `form`.

    Args:
        form: what is computed.
        inputs: the quantization of each map in `form.channels`.
        output: of the result; None: the result is float32.
        inner: of the maps between. Separable: of every stencil (identities too) that a stage or a 1×1 follows, in
            order; then of the map behind the gate, if there is one. Grouped: of the map before `project`. Else none.
        addend: of the residual, or of a gated sum's first map.

    The weights, in this order: for each convolution of `form`, in its order, the weight as int8 (a `Grouped`'s
    `pointwise` too), scale float32, bias int32, both one per output channel in their natural order. There is a bias
    whatever the form says. Then a gated sum's scale and shift in float32 if it is affine. See `integer_weights`.

    Raises: BadInput where quantizations do not go with the form. An average belongs to a uint8 result; max-pooling
    changes no quantization.
    """

    form: Separable | Grouped | GatedSum | Upsample | MaxPool
    inputs: tuple[Quantization, ...]
    output: Quantization | None
    inner: tuple[Quantization, ...] = ()
    addend: Quantization | None = None

    def __post_init__(self) -> None:
        form = self.form
        adds = isinstance(form, GatedSum) or getattr(form, "residual", False)
        given = len(self.inputs), len(self.inner), self.addend is not None
        if given != (wanted := (len(channels_of(form)), inner_maps(form), adds)):
            raise BadInput(f"{form} needs {wanted} quantizations (inputs, inner maps, addend), got {given}")
        if self.output is None and form.average:
            raise BadInput("the average is that of a quantized map: output is None")
        last = form.stages[-1] if isinstance(form, Separable) and form.out_channels is None and form.stages else ()
        if any(stencil.activation != "none" for stencil in last):
            raise BadInput("a last stencil has no activation of its own: it is the form's")
        if isinstance(form, MaxPool) and self.output != self.inputs[0]:
            raise BadInput(f"max-pooling keeps {self.inputs[0]}, and output is {self.output}")

    @property
    def average(self) -> bool:
        """Whether the output's average over the pixels is a second result, in float32."""
        return self.form.average

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.form.width

    @property
    def dtype(self) -> torch.dtype:
        """Of the output."""
        return torch.float32 if self.output is None else torch.uint8

    def size(self, h: int, w: int) -> Pair:
        """Height and width of the output."""
        return self.form.size(h, w)

    def macs(self, h: int, w: int) -> int:
        """Multiply-adds of one sample of that size."""
        return self.form.macs(h, w)


class PerChannel(NamedTuple):
    """The quantization of each channel of a concatenation: float32 scales and integer zero points, `C` each."""

    scale: Tensor
    zero_point: Tensor

    @classmethod
    def of(cls, maps: Sequence[Quantization], channels: Sequence[int]) -> "PerChannel":
        """Of maps with so many channels."""
        count = torch.tensor(list(channels))
        scales = torch.tensor([q.scale for q in maps], dtype=torch.float32)
        return cls(scales.repeat_interleave(count), torch.tensor([q.zero_point for q in maps]).repeat_interleave(count))

    def part(self, stencil: Stencil) -> "PerChannel":
        """Of the channels that a stencil reads."""
        chosen = slice(stencil.first, stencil.first + stencil.channels)
        return PerChannel(self.scale[chosen], self.zero_point[chosen])

    def centred(self, q: Tensor) -> Tensor:
        """q - zero_point as exact float64: `N C H W`."""
        return q.double() - self.zero_point[:, None, None]


def channels_of(form: object) -> tuple[int, ...]:
    """Channels of each input map."""
    return (form.channels,) if isinstance(form, MaxPool) else form.channels  # type: ignore[attr-defined,no-any-return]


def inner_maps(form: object) -> int:
    """How many quantizations `Quantized.inner` has for the form."""
    if isinstance(form, Grouped):
        return int(form.project is not None)
    if not isinstance(form, Separable):
        return 0
    followed = form.stages if form.out_channels is not None else form.stages[:-1]
    return sum(map(len, followed)) + form.gate


def rounded_ratio(a: float, b: float) -> float:
    """float32(a / b), divided in float64."""
    return float(torch.tensor(a / b, dtype=torch.float32))


def unit(activation: str, output: Quantization | None) -> float:
    """The real value of a step of the numbers that the activation sees."""
    return output.scale if output is not None and activation in CLAMPS else 1.0


def multipliers(scale: Tensor, by: float) -> Tensor:
    """float32(scale / by), divided in float64."""
    return (scale.double() / by).float()


def limits(activation: str, output: Quantization) -> Pair:
    """The least and the largest q that the activation leaves."""
    low = output.zero_point if activation in ("relu", "relu6") else 0
    return low, min(255, output.zero_point + round(6.0 / output.scale)) if activation == "relu6" else 255
