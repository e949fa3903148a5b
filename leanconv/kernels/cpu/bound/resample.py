"""Upsampling and max-pooling bound to their weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import Bound, PreparedKernel, checked, element_type_of, empty_result, ready
from leanconv.kernels.cpu.bound.views import average_of, map_view, out_view, weights_view
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines import max_pool, upsample
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_projection, pack_vector
from leanconv.kernels.cpu.runtime.block_loop import Average, BlockLoop, View, Work
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import lanes_for, row_block, summed_rows
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import check_channels
from leanconv.ops.pool import MaxPool
from leanconv.ops.upsample import Upsample


class BoundUpsample(Bound):
    """`ops.upsample.upsample` with form and weights given: `bound(inputs)`."""

    def __init__(self, form: Upsample, weights: Sequence[Tensor], target: Target | None = None) -> None:
        super().__init__(target)
        k, o = form.factor, form.out_channels
        self.form, weight = form, weights[0].detach().float()  # C O k k
        # For each row i of the factor a 1×1 `k·O C`, the column's results first by pixel, then by channel.
        self._rows = [weight[:, :, i].permute(2, 1, 0).reshape(k * o, -1) for i in range(k)]
        self._bias = weights[1].detach().float().repeat(k) if form.bias else None

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        if (known := self._known(inputs)) is not None:
            return known(*inputs)
        form = self.form
        nothing = checked(form, inputs)[2]
        return self._call(inputs, [ready(x) for x in inputs]) if nothing is None else nothing

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`maps`: the inputs."""
        return self([x for x in maps if x is not None])

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        """Pointers: inputs, packed weights per row and input, bias, output, averages."""
        inputs = [x for x in maps if x is not None]
        form, (n, _, h, w) = self.form, inputs[0].shape
        k, o = form.factor, form.out_channels
        size, width = (n, o, h * k, w * k), k * o
        element = element_type_of(self.cpu, *inputs)
        core = upsample.Rows(
            tuple((x.shape[1], pixel_stride(x)) for x in inputs), width, form.bias, form.activation, element
        )
        tile = self.matrix_tile(core, width, w, sum(form.channels), element)
        weights = [
            pack_projection(part, tile.block, element)
            for row in self._rows
            for part in row.split(list(form.channels), 1)
        ]
        if form.bias:
            weights.append(pack_vector(self._bias, tile.block, width))
        views = [weights_view(len(inputs) + index, packed) for index, packed in enumerate(weights)]
        out, made, kernels = len(inputs) + len(weights), kernel(upsample.pipeline, core, tile), []
        for i in range(k):
            arguments: list[View] = []
            for index, x in enumerate(inputs):
                arguments += [map_view(index, x, 0, x.shape[1]), views[i * len(inputs) + index]]
            arguments += views[k * len(inputs) :]
            line = k * w * o
            target = View(out, ((width, 1), (w, width), (h, k * line)), i * line, h * k * line, True, element.dtype)
            kernels.append((made, [*arguments, target]))
        unit = summed_rows(h) if form.average else 1
        row_bytes = element.bytes * w * (sum(form.channels) + k * width)
        block = row_block(self.cpu, h, n, row_bytes, 0, torch.get_num_threads(), unit)
        average = None
        if form.average:  # a row of the work is k rows of the output
            average = Average(out, out + 1, o, k * k * w, h * k * k * w * o, unit, element.dtype)
        return PreparedKernel(
            BlockLoop(kernels, Work(n, h, block), average), weights, size, form.average, element.dtype
        )


class BoundMaxPool(Bound):
    """`ops.pool.max_pool` with the form given: `bound(x)`."""

    def __init__(self, form: MaxPool, weights: Sequence[Tensor] = (), target: Target | None = None) -> None:
        super().__init__(target)
        self.form = form

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if (known := self._known((x,))) is not None:
            return known(x)
        form = self.form
        check_channels([x], [form.channels])
        if (
            nothing := empty_result(x.shape[0], form.width, form.size(*x.shape[2:]), form.average, x.dtype)
        ) is not None:
            return nothing
        return self._call([x], [ready(x)])

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`maps`: the input."""
        (x,) = [x for x in maps if x is not None]
        return self(x)

    def _prepare(self, *maps: Tensor | None) -> PreparedKernel:
        form, (x,) = self.form, [x for x in maps if x is not None]
        (n, c, _, w), (p, q) = x.shape, form.size(*x.shape[2:])
        element, sides = element_type_of(self.cpu, x), (form.padding[0], form.padding[2])
        core = max_pool.Pool(c, pixel_stride(x), form.kernel, form.stride, sides, element)
        size, lanes = (n, c, p, q), lanes_for(self.cpu, c)
        made = kernel(max_pool.pipeline, core, Tile(1, lanes, lanes))
        unit, row_bytes = summed_rows(p) if form.average else 1, element.bytes * c * (q + w * form.stride[0])
        block = row_block(self.cpu, p, n, row_bytes, form.kernel[0] - 1, torch.get_num_threads(), unit)
        average = average_of(1, 2, size, element, unit) if form.average else None
        arguments = [map_view(0, x, 0, c), out_view(1, size, 0, c, element)]
        return PreparedKernel(
            BlockLoop([(made, arguments)], Work(n, p, block), average), [], size, form.average, element.dtype
        )
