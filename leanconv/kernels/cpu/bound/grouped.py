"""Grouped convolutions bound to their weights."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import Bound, PreparedKernel, check_fit, checked, element_type_of, ready
from leanconv.kernels.cpu.bound.views import average_of, map_view, out_view, planes_view, weights_view
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines.packing import pack_projection, pack_vector
from leanconv.kernels.cpu.pipelines.padded import GroupedCore
from leanconv.kernels.cpu.runtime.block_loop import BlockLoop, View, Work
from leanconv.kernels.cpu.runtime.tensors import MOST_PLANES, in_planes, pixel_stride
from leanconv.kernels.cpu.tuning.direct_or_winograd import PACKERS, PIPELINES, Algorithm, choose_direct_or_winograd
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import check_channels
from leanconv.ops.grouped import Grouped


class BoundGrouped(Bound):
    """`ops.grouped.grouped` with form and weights given: `bound(inputs, residual=None)`.

    `method`: "direct" or "winograd" to fix it; None leaves the choice to the cost model.
    """

    method: str | None = None

    def __init__(self, form: Grouped, weights: Sequence[Tensor], target: Target | None = None) -> None:
        super().__init__(target)
        self.planes = form.groups == len(form.channels) == 1 and sum(form.channels) <= MOST_PLANES
        self.form, left = form, [w.detach().float() for w in weights]
        g, o, c = form.groups, form.out_channels, sum(form.channels)
        self._taps = left.pop(0).reshape(g, o // g, c // g, -1)  # G O/G C/G R·S
        self._beside = self._in_groups(left.pop(0).reshape(o, c)) if form.pointwise else None
        self._bias = self._outputs_in_groups(left.pop(0)) if form.bias else None
        self._project = None
        if form.project is not None:
            project = left.pop(0).reshape(form.project, o)
            self._project = self._outputs_in_groups(project.T).T
        self._project_bias = left.pop(0) if form.project_bias else None

    def _outputs_in_groups(self, x: Tensor) -> Tensor:
        """The rows of `O ...` group by group."""
        g = self.form.groups
        return x.unflatten(0, (-1, g)).transpose(0, 1).flatten(0, 1) if self.form.interleaved else x

    def _in_groups(self, x: Tensor) -> Tensor:
        """`O C` with both sides group by group."""
        return self._outputs_in_groups(self._outputs_in_groups(x).T.contiguous()).T

    def __call__(self, inputs: Sequence[Tensor], residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given = (*inputs, residual)
        if (known := self._known(given)) is not None:
            return known(*[x for x in given if x is not None])
        form = self.form
        n, size, nothing = checked(form, inputs)
        if nothing is not None:
            return nothing
        check_channels([] if residual is None else [residual], [form.width] * form.residual)
        check_fit([] if residual is None else [residual], n, size)
        maps: list[Tensor | None] = [ready(x, self.planes) for x in inputs]
        return self._call(given, [*maps, None if residual is None else ready(residual)])

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`maps`: the inputs, then the residual."""
        *inputs, residual = maps
        return self([x for x in inputs if x is not None], residual)

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        """Pointers: inputs, residual, packed weights, output, averages."""
        *given, residual = maps
        inputs = [x for x in given if x is not None]
        form, (n, _, h, w) = self.form, inputs[0].shape
        p, q = form.size(h, w)
        size = (n, form.width, p, q)
        element = element_type_of(self.cpu, *inputs, residual)
        planes = self.planes and in_planes(inputs[0])
        core = GroupedCore(
            form,
            () if planes else tuple(map(pixel_stride, inputs)),
            0 if residual is None else pixel_stride(residual),
            element,
        )
        algorithm = choose_direct_or_winograd(self.target, core, n, (p, q), self.tile, self.method)
        tiles, direct = algorithm.tiles, algorithm.method == "direct" and not planes
        if direct and any(form.padding[2:]) and tiles.inner.pixels == tiles.outer.pixels == q:
            core = replace(core, columns=w)
        weights = self._packed(algorithm, core)
        first = len(inputs) + (residual is not None)
        arguments = [map_view(index, x, 0, x.shape[1]) for index, x in enumerate(inputs)]
        arguments = [planes_view(0, inputs[0])] if planes else arguments
        arguments += [weights_view(first + index, packed) for index, packed in enumerate(weights)]
        if residual is not None:
            plain = map_view(len(inputs), residual, 0, form.width)
            arguments.append(self._by_group(plain) if form.project is None else plain)
        out = first + len(weights)
        target = out_view(out, size, 0, form.width, element)
        arguments.append(self._by_group(target) if form.project is None else target)
        made = kernel(PIPELINES[algorithm.method], core, tiles)
        average = average_of(out, out + 1, size, element, algorithm.unit) if form.average else None
        loop = BlockLoop([(made, arguments)], Work(n, p, algorithm.block), average)
        prepared = PreparedKernel(loop, weights, size, form.average, element.dtype)
        prepared.method = algorithm.method
        return prepared

    def _packed(self, algorithm: Algorithm, core: GroupedCore) -> list[Tensor]:
        form, tiles = self.form, algorithm.tiles
        block, each = tiles.inner.block, form.out_channels // form.groups
        weights = PACKERS[algorithm.method](core, self._taps, self._beside, block)
        if self._bias is not None:
            weights.append(torch.cat([pack_vector(part, block, each) for part in self._bias.split(each)]))
        if self._project is not None and form.project is not None:
            parts = self._project.split(each, 1)
            weights += [pack_projection(part, tiles.outer.block, core.element) for part in parts]
            if self._project_bias is not None:
                weights.append(pack_vector(self._project_bias, tiles.outer.block, form.project))
        return weights

    def _by_group(self, view: View) -> View:
        """`m x y` as `j g x y`."""
        form = self.form
        each = form.out_channels // form.groups
        steps = ((each, form.groups), (form.groups, 1)) if form.interleaved else ((each, 1), (form.groups, each))
        return replace(view, dims=(*steps, *view.dims[1:]))
