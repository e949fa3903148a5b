"""SPConv and SPLConv whole: both passes, and what stands between them, in one call of the runtime."""

from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.bound.base import Bound, Step, check_fit, empty_result, ready
from leanconv.kernels.cpu.bound.gated_sum import BoundGatedSum, GatedStep
from leanconv.kernels.cpu.bound.grouped import BoundGrouped
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.runtime.tensors import new_map
from leanconv.ops.forms import check_channels


class BoundSplit(Bound):
    """A map whose first channels go through `first`, which gives a and its average, the others through the 1×1 of the
    gated sum that blends them: `bound(x)`.

    The result lies where a did if it can: what is not read from memory need not be there.

    Raises: BadInput unless the two fit together.
    """

    def __init__(self, first: BoundSeparable | BoundGrouped, blend: BoundGatedSum) -> None:
        super().__init__(first.cpu)
        self._first, self._blend = first, blend
        form = first.form
        if len(form.channels) != 1 or not form.average or form.residual or getattr(form, "gate", False):
            raise BadInput(f"a first pass of one input, no other map, and an average is needed, got {form}")
        if form.width != blend.form.out_channels or len(blend.form.channels) != 1:
            raise BadInput(f"passes that do not fit together: {form} and {blend.form}")

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if (step := self._known((x,))) is not None:
            return step(x)
        first, blend = self._first.form, self._blend.form
        check_channels([x], [first.channels[0] + blend.channels[0]])
        size = first.size(*x.shape[2:])
        check_fit([x], x.shape[0], size)
        if (nothing := empty_result(x.shape[0], blend.width, size, blend.average, x.dtype)) is not None:
            return nothing
        return self._call((x,), (ready(x),))

    def _step(self, *maps: Tensor | None) -> Step:
        (x,) = [x for x in maps if x is not None]
        return _SplitStep(self._first, self._blend, x)


class _SplitStep(Step):
    """Both passes for maps like `x`."""

    def __init__(self, first: BoundSeparable | BoundGrouped, blend: BoundGatedSum, x: Tensor) -> None:
        self._bound, self._split = (first, blend), first.form.channels[0]
        own, other = x[:, : self._split], x[:, self._split :]
        none: list[Any] = [None] * (2 if isinstance(first, BoundSeparable) else 1)
        self._before = first.step(own, *none)
        a = new_map(*self._before.size, self._before.dtype)
        within = blend.in_place((a, other))
        self._in_place, self._step = within is not None, within or blend._step(a, other)
        step: GatedStep = self._step
        super().__init__(step.program, (), step.size, step.average, step.dtype)
        native = step.program.native and self._before.program.native
        self.method = self._before.method
        self._run = blend.blend(step.program, (a, other), self._before.program).run if native else None
        self._skip = self._split * x.itemsize

    def __call__(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = maps
        if self._run is None:
            first, blend = self._bound
            a, average = first([x[:, : self._split]])
            return blend(a, [x[:, self._split :]], average)
        y, means = self.results()
        a = y if self._in_place else torch.empty_strided(self.size, self.strides, dtype=self.dtype)
        at, between = x.data_ptr(), a.data_ptr()
        before = [at, *self._before._constant, between, None]
        self._run([between, at + self._skip, *self._step.rest(y, means), None, None, *before])
        return y, means
