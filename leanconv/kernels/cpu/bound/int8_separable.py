"""The steps of a quantized separable convolution."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.int8_lowering import Addend, product_of
from leanconv.kernels.cpu.bound.int8_packing import padded_channels
from leanconv.kernels.cpu.bound.int8_plan import Around, Part, Plan, sums
from leanconv.ops.forms import Pair, Stencil
from leanconv.ops.quantized import PerChannel, Quantization, Quantized, multipliers, unit
from leanconv.ops.separable import Separable


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
