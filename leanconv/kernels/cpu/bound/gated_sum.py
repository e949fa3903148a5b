"""The second pass of a softmax pair bound to its weights: averages, gates, and a 1×1 that blends."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import (
    Bound,
    PreparedKernel,
    check_fit,
    check_vectors,
    element_type_of,
    empty_result,
    ready,
)
from leanconv.kernels.cpu.bound.views import average_of, flat_out_view, flat_view, vector_view, weights_view
from leanconv.kernels.cpu.compilation.build import compiled_for, kernel
from leanconv.kernels.cpu.pipelines import pointwise
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_projection
from leanconv.kernels.cpu.runtime.block_loop import BlockLoop, View, Work
from leanconv.kernels.cpu.runtime.launch import Gates, KernelLaunch
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import dividing_tile, row_block, summed_rows, whole_units
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import check_channels
from leanconv.ops.gated_sum import GatedSum


class BoundGatedSum(Bound):
    """`ops.gated_sum.gated_pointwise` bound to its weights: `bound(a, inputs, a_average, averages)`."""

    def __init__(self, form: GatedSum, weights: Sequence[Tensor], target: Target | None = None) -> None:
        super().__init__(target)
        self.form, left = form, [w.detach().float() for w in weights]
        self._weight = left.pop(0).reshape(form.out_channels, sum(form.channels))
        self._bias = left.pop(0) if form.bias else None
        self._transposed = self._weight.T.contiguous()
        affine: list[Tensor | None] = [*left] if form.affine else [None, None]
        self._vectors = [None if v is None else v.contiguous() for v in (self._bias, *affine)]

    def __call__(
        self, a: Tensor, inputs: Sequence[Tensor], a_average: Tensor, averages: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        given, means = (a, *inputs), [a_average, *averages]
        known = self._known(given)
        if isinstance(known, PreparedGatedSum):
            return known.blended(given, self._checked(given, means))
        form = self.form
        check_channels(inputs, form.channels)
        check_channels([a], [form.out_channels])
        check_fit(given, a.shape[0], a.shape[2:])
        size = form.size(*a.shape[2:])
        if (nothing := empty_result(a.shape[0], form.width, size, form.average, a.dtype)) is not None:
            return nothing
        maps = [ready(x) for x in given]
        self._remember(given, maps)
        prepared = self.prepared(*maps)
        assert isinstance(prepared, PreparedGatedSum)
        return prepared.blended(maps, self._checked(maps, means))

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """`maps`: a, then the inputs; `averages` of each."""
        a, *inputs = [x for x in maps if x is not None]
        return self(a, inputs, averages[0], averages[1:])

    def _checked(self, maps: Sequence[Tensor], averages: Sequence[Tensor]) -> list[Tensor]:
        """The averages as the kernel takes them. Raises BadInput unless they fit."""
        check_vectors(averages, maps[0].shape[0], [self.form.out_channels, *self.form.channels])
        return [x.float().contiguous() for x in averages]

    def gates(self, averages: Sequence[Tensor], out: Tensor) -> Gates:
        """The call that turns averages into the factors `out`, `N 3 O`; none of them may move."""
        return Gates(averages[0], averages[1:], self._transposed, self._vectors, out)

    def in_torch(self, averages: Sequence[Tensor]) -> Tensor:
        """The factors where there is no runtime: `N 3 O`, what a, the 1×1 and 1 are multiplied with."""
        first, *rest = averages
        bias, scale, shift = self._vectors
        second = torch.nn.functional.linear(torch.cat(rest, 1), self._weight, bias)
        gate = torch.sigmoid(first - second)
        factors = torch.stack([gate, 1 - gate, torch.zeros_like(gate)], 1) * (1.0 if scale is None else scale)
        factors[:, 2] = (0.0 if bias is None else bias * factors[:, 1]) + (0.0 if shift is None else shift)
        return factors

    def _prepare(self, *maps: Tensor | None) -> "PreparedGatedSum":
        prepared = self._with_tile([x for x in maps if x is not None], whole=False)
        assert prepared is not None
        return prepared

    def prepare_in_place(self, *maps: Tensor | None) -> "PreparedGatedSum | None":
        """A kernel whose output may lie where a does: whole register tiles compute each pixel once.

        None where whole tiles lose more time than one map less in memory saves.
        """
        if not self.takes(*maps):
            return None
        with compiled_for(self.cpu.isa):
            prepared = self._with_tile([x for x in maps if x is not None], whole=True)
        return prepared if prepared is not None and prepared.loop.native else None

    def _with_tile(self, maps: Sequence[Tensor], whole: bool) -> "PreparedGatedSum | None":
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
        unit, least = summed_rows(h), tile.pixels
        if form.average:
            least = math.lcm(least, unit * w) if whole else whole_units(unit * w, least)
            if whole and 2 * least > pixels:
                return None  # too few blocks
        row_bytes = element.bytes * (sum(form.channels) + 2 * o)
        block = row_block(self.cpu, pixels, n, row_bytes, 0, torch.get_num_threads(), least)
        average = average_of(out, out + 1, size, element, unit, flat=True) if form.average else None
        made = kernel(pointwise.pipeline, core, tile)
        loop = BlockLoop([(made, arguments)], Work(n, pixels, block, tile.pixels), average)
        return PreparedGatedSum(self, loop, weights, size, element.dtype)


class PreparedGatedSum(PreparedKernel):
    """The kernel of a gated sum for one set of shapes; its factors come from the averages of a and the inputs."""

    def __init__(
        self,
        bound: BoundGatedSum,
        loop: BlockLoop,
        weights: Sequence[Tensor],
        size: tuple[int, int, int, int],
        dtype: torch.dtype,
    ) -> None:
        super().__init__(loop, weights, size, bound.form.average, dtype)
        self._bound = bound

    def blended(self, maps: Sequence[Tensor], averages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """New outputs from the maps and their averages."""
        if not self.loop.native:
            return self(*maps, self._bound.in_torch(averages))
        factors = self._factors()
        self._bound.gates(averages, factors)()
        return self(*maps, factors)

    def launch(self, averages: Sequence[Tensor] = ()) -> KernelLaunch:
        """One call, its gates computed first."""
        factors = self._factors()
        return self._launched([factors, *self.weights], self._bound.gates(averages, factors))

    def _factors(self) -> Tensor:
        return torch.empty(self.size[0], 3, self.size[1], dtype=torch.float32)
