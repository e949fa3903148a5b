"""The second pass of a softmax pair bound to its weights: averages, gates, and a 1×1 that blends."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.bound.base import (
    Bound,
    Step,
    average_of,
    check_fit,
    check_vectors,
    element_type_of,
    empty_result,
    flat_out_view,
    flat_view,
    ready,
    vector_view,
    weights_view,
)
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines import pointwise
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_projection
from leanconv.kernels.cpu.runtime.abi import library
from leanconv.kernels.cpu.runtime.gated_launch import Blend
from leanconv.kernels.cpu.runtime.launch import Gates, Program, View, Work
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import dividing_tile, row_block
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.ops.forms import averaged, check_channels
from leanconv.ops.gated_sum import GatedSum


class BoundGatedSum(Bound):
    """`ops.gated_sum.gated_pointwise` bound to its weights: `bound(a, inputs, a_average=None, averages=None)`."""

    def __init__(self, form: GatedSum, weights: Sequence[Tensor], cpu: Cpu | None = None) -> None:
        super().__init__(cpu)
        self.form, left = form, [w.detach().float() for w in weights]
        self._weight = left.pop(0).reshape(form.out_channels, sum(form.channels))
        self._bias = left.pop(0) if form.bias else None
        self._transposed = self._weight.T.contiguous()
        affine: list[Tensor | None] = [*left] if form.affine else [None, None]
        self._vectors = [None if v is None else v.contiguous() for v in (self._bias, *affine)]

    def __call__(  # type: ignore[override]
        self,
        a: Tensor,
        inputs: Sequence[Tensor],
        a_average: Tensor | None = None,
        averages: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        given = (a, *inputs)
        nothing_known: Sequence[Tensor | None] = [None] * len(inputs)
        means = [a_average, *(averages or nothing_known)]
        step: Any = self._known(given)
        if step is not None:
            return step(*given, averages=self._checked(given, means))  # type: ignore[no-any-return]
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
        step = self.step(*maps)
        return step(*maps, averages=self._checked(maps, means))  # type: ignore[no-any-return]

    def _checked(self, maps: Sequence[Tensor], averages: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The averages as the step takes them. Raises BadInput unless those that are given fit."""
        widths = [self.form.out_channels, *self.form.channels]
        if len(averages) != len(widths):
            raise BadInput(f"{len(widths) - 1} averages of the inputs are needed, got {len(averages) - 1}")
        given = [(x, width) for x, width in zip(averages, widths, strict=True) if x is not None]
        check_vectors([x for x, _ in given], maps[0].shape[0], [width for _, width in given])
        return [None if x is None else x.float().contiguous() for x in averages]

    def gates(self, first: Tensor, rest: Sequence[Tensor], out: Tensor) -> Gates:
        """The call that turns averages into the factors `out`, `N 3 O`; none of them may move."""
        return Gates(first, rest, self._transposed, self._vectors, out)

    def blend(self, program: Program, maps: Sequence[Tensor], before: Program | None = None) -> Blend:
        """A program of this sum as one call of the runtime, with its gates, for maps like these; see `Blend`."""
        return Blend(program, maps, self._transposed, self._vectors, before)

    def in_torch(self, maps: Sequence[Tensor], averages: Sequence[Tensor | None]) -> Tensor:
        """The factors where there is no runtime: `N 3 O`, what a, the 1×1 and 1 are multiplied with."""
        first, *rest = [averaged(x) if known is None else known for x, known in zip(maps, averages, strict=True)]
        bias, scale, shift = self._vectors
        second = torch.nn.functional.linear(torch.cat(rest, 1), self._weight, bias)
        gate = torch.sigmoid(first - second)
        factors = torch.stack([gate, 1 - gate, torch.zeros_like(gate)], 1) * (1.0 if scale is None else scale)
        factors[:, 2] = (0.0 if bias is None else bias * factors[:, 1]) + (0.0 if shift is None else shift)
        return factors

    def _step(self, *maps: Tensor | None) -> "GatedStep":
        made = self._with_tile([x for x in maps if x is not None], whole=False)
        assert made is not None
        return made

    def in_place(self, maps: Sequence[Tensor]) -> "GatedStep | None":
        """A step whose output may lie where a does: each of its pixels is made once, by whole register tiles.

        None where such tiles are slower, by more than a map from memory is worth.
        """
        return self._with_tile(maps, whole=True)

    def _with_tile(self, maps: Sequence[Tensor], whole: bool) -> "GatedStep | None":
        """Pointers: a, inputs, gates, packed weights, output, averages."""
        a, *inputs = maps
        form, (n, o, h, w) = self.form, a.shape
        pixels, size, gates = h * w, (n, o, h, w), 1 + len(inputs)
        element = element_type_of(self.cpu, *maps)
        core = pointwise.Pointwise(
            tuple((x.shape[1], pixel_stride(x)) for x in inputs),
            o,
            False,
            form.activation,
            pixel_stride(a),
            False,
            True,
            element,
        )
        channels = sum(form.channels)
        tile: Tile | None = self.matrix_tile(core, o, pixels, channels, element)
        if whole and tile is not None and pixels % tile.pixels:
            from_memory = element.bytes * pixels * o > self.cpu.l2
            tile = dividing_tile(
                self.cpu, o, pixels, element.steps(channels), element.pairs, 1.1 if from_memory else 1.02
            )
        if tile is None:
            return None
        arguments: list[View] = []
        weights: list[Tensor] = []
        for index, (x, part) in enumerate(zip(inputs, self._weight.split(list(form.channels), 1), strict=True)):
            weights.append(pack_projection(part, tile.block, element))
            arguments += [flat_view(1 + index, x, 0, x.shape[1]), weights_view(gates + len(weights), weights[-1])]
        arguments.append(flat_view(0, a, 0, o))
        arguments += [vector_view(gates, o, part * o, 3 * o) for part in range(3)]
        out = gates + 1 + len(weights)
        arguments.append(flat_out_view(out, size, element))
        block = row_block(
            self.cpu, pixels, n, element.bytes * (sum(form.channels) + 2 * o), 0, torch.get_num_threads(), tile.pixels
        )
        average = average_of(out, out + 1, size, element, flat=True) if form.average else None
        made = kernel(pointwise.pipeline, core, tile)
        program = Program([(made, arguments)], Work(n, pixels, block, tile.pixels), average)
        return GatedStep(self, program, weights, size, element.dtype, maps)


class GatedStep(Step):
    """The step of a gated sum: `step(*maps, averages=...)`; those that are None, or all, are computed."""

    def __init__(
        self,
        bound: BoundGatedSum,
        program: Program,
        weights: Sequence[Tensor],
        size: tuple[int, int, int, int],
        dtype: torch.dtype,
        maps: Sequence[Tensor],
    ) -> None:
        super().__init__(program, weights, size, bound.form.average, dtype)
        self._bound, self._blend = bound, bound.blend(program, maps) if program.native else None

    def __call__(self, *maps: Tensor, averages: Sequence[Tensor | None] = ()) -> tuple[Tensor, Tensor]:
        if self._blend is None:
            return super().__call__(*maps, self._bound.in_torch(maps, list(averages) or [None] * len(maps)))
        y, means = self.results()
        known = [None if x is None else x.data_ptr() for x in averages]
        self._blend.run([*[x.data_ptr() for x in maps], *self.rest(y, means), *known])
        return y, means

    def rest(self, y: Tensor, means: Tensor) -> list[int | None]:
        """The pointers behind the maps: the gates, whose place the runtime knows, weights and results."""
        return [None, *self._constant, y.data_ptr(), *([means.data_ptr()] if self.average else [])]


def global_average(x: Tensor) -> Tensor:
    """The average over the pixels of an even map: `N C H W -> N C`, float32."""
    lib = library()
    n, c, h, w = x.shape
    pixel = pixel_stride(x)
    if lib is None or not x.numel() or not pixel:
        return averaged(x)
    means = torch.empty(n, c, dtype=torch.float32)
    sample = x.stride(0) if n > 1 else 0
    if lib.lc_average(
        x.data_ptr(),
        x.dtype.itemsize == 2,
        sample,
        w * pixel,
        pixel,
        n,
        h,
        w,
        c,
        means.data_ptr(),
        torch.get_num_threads(),
    ):
        raise MemoryError("no memory for the sums of a global average")
    return means
