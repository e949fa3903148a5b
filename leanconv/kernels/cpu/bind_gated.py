"""The second pass of a softmax pair bound to its weights: averages, gates, and a 1×1 that blends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu import pointwise
from leanconv.kernels.cpu.bound import (
    Bound,
    Step,
    average_of,
    check_fit,
    check_vectors,
    empty_result,
    flat_out_view,
    flat_view,
    ready,
    storage_for,
    vector_view,
    weights_view,
)  # fmt: skip
from leanconv.kernels.cpu.build import kernel
from leanconv.kernels.cpu.maps import pack_projection, pixel_stride
from leanconv.kernels.cpu.program import Gates, Program, View, Work, library
from leanconv.kernels.cpu.tiles import row_block
from leanconv.ops.forms import averaged, check_channels
from leanconv.ops.gated_sum import GatedSum


class BoundGatedSum(Bound):
    """`ops.gated_sum.gated_pointwise` bound to its weights: `bound(a, inputs, a_average=None, averages=None)`."""

    def __init__(self, form: GatedSum, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.form, left = form, [w.detach().float() for w in weights]
        self._weight = left.pop(0).reshape(form.out_channels, sum(form.channels))
        self._bias = left.pop(0) if form.bias else None
        self._transposed = self._weight.T.contiguous()
        affine: list[Tensor | None] = [*left] if form.affine else [None, None]
        self._vectors = [None if v is None else v.contiguous() for v in (self._bias, *affine)]

    def __call__(  # type: ignore[override]
        self, a: Tensor, inputs: Sequence[Tensor], a_average: Tensor | None = None,
        averages: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        given = (a, *inputs)
        if (step := self._known(given)) is not None:
            return step(*given, self._averaged(given, a_average, averages))
        form = self.form
        check_channels(inputs, form.channels)
        check_channels([a], [form.out_channels])
        check_fit(given, a.shape[0], a.shape[2:])
        if (
            nothing := empty_result(a.shape[0], form.width, form.size(*a.shape[2:]), form.average, a.dtype)
        ) is not None:
            return nothing
        maps = [ready(x) for x in given]
        self._remember(given, maps)
        return self.step(*maps)(*maps, self._averaged(maps, a_average, averages))

    def _averaged(self, maps: Sequence[Tensor], a_average: Tensor | None, averages: Sequence[Tensor] | None) -> Tensor:
        """The factors, from the averages that are given or those of the maps."""
        first = global_average(maps[0]) if a_average is None else a_average
        rest = averages if averages else [global_average(x) for x in maps[1:]]
        check_vectors([first, *rest], maps[0].shape[0], [self.form.out_channels, *self.form.channels])
        return self._gates(first.float().contiguous(), [x.float().contiguous() for x in rest])

    def _gates(self, first: Tensor, rest: list[Tensor]) -> Tensor:
        """`N 3 O`: what a, the 1×1 and 1 are multiplied with."""
        if library() is None:
            return self._gates_in_torch(first, rest)
        out = torch.empty(first.shape[0], 3, self.form.out_channels)
        self.gates(first, rest, out)()
        return out

    def gates(self, first: Tensor, rest: Sequence[Tensor], out: Tensor) -> Gates:
        """The call that turns averages into the factors `out`, `N 3 O`; none of them may move."""
        return Gates(first, rest, self._transposed, self._vectors, out)

    def _gates_in_torch(self, first: Tensor, rest: list[Tensor]) -> Tensor:
        bias, scale, shift = self._vectors
        second = torch.nn.functional.linear(torch.cat(rest, 1), self._weight, bias)
        gate = torch.sigmoid(first - second)
        factors = torch.stack([gate, 1 - gate, torch.zeros_like(gate)], 1) * (1.0 if scale is None else scale)
        factors[:, 2] = (0.0 if bias is None else bias * factors[:, 1]) + (0.0 if shift is None else shift)
        return factors

    def _step(self, *maps: Tensor | None) -> Step:
        """Pointers: a, inputs, gates, packed weights, output, averages."""
        a, *inputs = [x for x in maps if x is not None]
        form, (n, o, h, w) = self.form, a.shape
        pixels, size, gates = h * w, (n, o, h, w), 1 + len(inputs)
        storage = storage_for(*maps)
        core = pointwise.Pointwise(
            tuple((x.shape[1], pixel_stride(x)) for x in inputs), o, False, form.activation, pixel_stride(a), False,
            True, storage,
        )  # fmt: skip
        tile = self.matrix_tile(core, o, pixels, storage.steps(sum(form.channels)), True)
        arguments: list[View] = []
        weights: list[Tensor] = []
        for index, (x, part) in enumerate(zip(inputs, self._weight.split(list(form.channels), 1), strict=True)):
            weights.append(pack_projection(part, tile.block, storage))
            arguments += [flat_view(1 + index, x, 0, x.shape[1]), weights_view(gates + len(weights), weights[-1])]
        arguments.append(flat_view(0, a, 0, o))
        arguments += [vector_view(gates, o, part * o, 3 * o) for part in range(3)]
        out = gates + 1 + len(weights)
        arguments.append(flat_out_view(out, size, storage))
        block = row_block(
            pixels, n, storage.bytes * (sum(form.channels) + 2 * o), 0, torch.get_num_threads(), tile.pixels
        )
        average = average_of(out, out + 1, size, storage, flat=True) if form.average else None
        made = kernel(pointwise.pipeline, core, tile)
        program = Program([(made, arguments)], Work(n, pixels, block, tile.pixels), average)
        return Step(program, weights, size, form.average, storage.dtype)


def global_average(x: Tensor) -> Tensor:
    """The average over the pixels of an even map: `N C H W -> N C`, float32."""
    lib = library()
    n, c, h, w = x.shape
    pixel = pixel_stride(x)
    if lib is None or not x.numel() or not pixel:
        return averaged(x)
    means = torch.empty(n, c)
    sample = x.stride(0) if n > 1 else 0
    if lib.lc_average(
        x.data_ptr(), x.dtype.itemsize == 2, sample, w * pixel, pixel, n, h, w, c, means.data_ptr(),
        torch.get_num_threads(),
    ):  # fmt: skip
        raise MemoryError("no memory for the sums of a global average")
    return means
