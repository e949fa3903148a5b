"""Separable convolutions bound to their weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound import separable_strassen
from leanconv.kernels.cpu.bound.base import Bound, PreparedKernel, check_fit, check_vectors, checked, ready
from leanconv.kernels.cpu.bound.channel_chains import Parts
from leanconv.kernels.cpu.bound.separable_builder import KernelBuilder
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import check_channels
from leanconv.ops.separable import Separable


class BoundSeparable(Bound):
    """`ops.separable.separable` with form and weights given: `bound(inputs, residual=None, gate=None)`."""

    def __init__(self, form: Separable, weights: Sequence[Tensor], target: Target | None = None) -> None:
        super().__init__(target)
        self.form, self.parts = form, Parts.of(form, weights)
        self._flat = all(
            s.identity and s.stride == (1, 1) and s.activation == "none" for t in self.parts.chains for s in t.stencils
        )

    def __call__(
        self, inputs: Sequence[Tensor], residual: Tensor | None = None, gate: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        given = (*inputs, residual, gate)
        if (known := self._known(given)) is not None:
            return known(*[x for x in given if x is not None])
        form = self.form
        n, size, nothing = checked(form, inputs)
        if nothing is not None:
            return nothing
        check_channels([] if residual is None else [residual], [form.width] * form.residual)
        check_vectors([] if gate is None else [gate], n, [form.middle] * form.gate)
        check_fit([] if residual is None else [residual], n, size)
        maps: list[Tensor | None] = [ready(x) for x in inputs]
        maps.append(ready(residual) if residual is not None else None)
        maps.append(gate.float().contiguous() if gate is not None else None)
        return self._call(given, maps)

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`maps`: the inputs, the residual, then the gate."""
        *inputs, residual, gate = maps
        return self([x for x in inputs if x is not None], residual, gate)

    def takes(self, *maps: Tensor | None) -> bool:
        """Whether the maps are read where they lie; a gate must be contiguous float32, for its address is passed."""
        *others, gate = maps
        plain = gate is None or (gate.is_contiguous() and gate.dtype == torch.float32)
        return plain and super().takes(*others)

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        *inputs, residual, gate = maps
        given = [x for x in inputs if x is not None]
        n, _, h, w = given[0].shape
        size = (n, self.form.width, *self.form.size(h, w))
        made = KernelBuilder(self, self.parts, given, residual, gate, size)
        if self.parts.project is None:
            return made.depthwise()
        if self._flat:
            return separable_strassen.pointwise(made) or made.pointwise()
        return separable_strassen.projected(made) or made.projected()
