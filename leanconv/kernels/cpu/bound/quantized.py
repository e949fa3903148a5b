"""Quantized primitives bound to their weights: kernels in C, for maps of uint8 or float32."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.bound.base import Bound, PreparedKernel, check_fit, check_vectors, empty_result
from leanconv.kernels.cpu.bound.int8_lowering import gated_sum_steps, grouped_steps, upsample_steps
from leanconv.kernels.cpu.bound.int8_plan import Part, Plan
from leanconv.kernels.cpu.bound.int8_separable import SeparableSteps
from leanconv.kernels.cpu.runtime import int8_abi
from leanconv.kernels.cpu.runtime.int8_call import Int8Call
from leanconv.kernels.cpu.runtime.launch import KernelLaunch
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.runtime.transpose import ensure_nhwc
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import check_channels
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.integer_reference import quantized
from leanconv.ops.pool import MaxPool
from leanconv.ops.quantized import MOST_WEIGHT, PerChannel, Quantized, channels_of
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample


def bind_quantized(form: Quantized, weights: Sequence[Tensor], target: Target | None = None) -> "BoundQuantized | None":
    """A quantized primitive with its weights; None without a C compiler, and for kernels beyond what the loops hold."""
    if int8_abi.runtime() is None or not _fits(form) or not _sums_fit(weights):
        return None
    return BoundQuantized(form, weights, target)


def bind_quantized_to_tiles(
    form: Quantized, weights: Sequence[Tensor], target: Target | None = None
) -> "BoundQuantized | None":
    """Likewise, products on matrix tiles; None where the processor has none, or the primitive multiplies nothing."""
    arithmetic = int8_abi.on_tiles((target or Target()).cpu)
    kind = form.form
    multiplies = not isinstance(kind, MaxPool) and (not isinstance(kind, Separable) or kind.out_channels is not None)
    if not arithmetic or not multiplies or not _fits(form) or not _sums_fit(weights):
        return None
    return BoundQuantized(form, weights, target, arithmetic)


def _fits(form: Quantized) -> bool:
    """Whether each convolution has as many taps as its kernel looks up together."""
    kind = form.form
    if isinstance(kind, Grouped):
        return kind.kernel[0] * kind.kernel[1] + kind.pointwise <= int8_abi.MOST_RUNS
    stages = kind.stages if isinstance(kind, Separable) else ()
    return all(s.kernel[0] * s.dilation[0] + 1 <= int8_abi.MOST_ROWS for stage in stages for s in stage)


def _sums_fit(weights: Sequence[Tensor]) -> bool:
    """Whether the sums of each convolution are int32, whatever its numbers are. A bias ends its weights."""
    terms = 0
    for w in weights:
        terms += w.numel() if w.dtype == torch.int8 else 0
        if w.dtype == torch.int32 and len(w):
            if 255 * MOST_WEIGHT * (terms // len(w)) + int(w.abs().max()) >= 1 << 31:
                return False
            terms = 0
    return True


class BoundQuantized(Bound):
    """`ops.integer_reference.primitive` with form and weights given: `bound.run(maps, averages)`, the same bits.

    `arithmetic`: of its products, one of `int8_abi.ARITHMETICS`.
    """

    def __init__(
        self, form: Quantized, weights: Sequence[Tensor], target: Target | None = None, arithmetic: str = "vectors"
    ) -> None:
        super().__init__(target)
        kind = form.form
        self.arithmetic = arithmetic
        self.form, self.weights = form, [w.detach() for w in weights]
        self.planes = not isinstance(kind, GatedSum | MaxPool) and len(form.inputs) == 1
        self._first = isinstance(kind, GatedSum)  # the addend stands before the inputs
        self._numbers: dict[bytes, Tensor] = {}

    def run(self, maps: Sequence[Tensor | None], averages: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """See `interface.Bound`. Float32 maps are quantized with the form's quantizations."""
        form, kind = self.form, self.form.form
        inputs, addend, gate = self._sorted(maps)
        check_channels(inputs, channels_of(kind))
        n, size = inputs[0].shape[0], form.size(*inputs[0].shape[2:])
        check_fit(inputs, n, inputs[0].shape[2:])
        check_channels([] if addend is None else [addend], [form.width] * (form.addend is not None))
        check_fit([] if addend is None else [addend], n, size)
        if isinstance(kind, Separable):
            check_vectors([] if gate is None else [gate], n, [kind.middle] * kind.gate)
        if self._first:
            check_vectors(averages, n, [form.width, *channels_of(kind)])
        if (nothing := empty_result(n, form.width, size, form.average, form.dtype)) is not None:
            return nothing
        given = [x if x is None else self._ready(x, i) for i, x in enumerate(maps)]
        prepared = self.prepared(*given)
        assert isinstance(prepared, PreparedQuantized)
        vectors = [x.float().contiguous() for x in averages]
        return prepared.filled([x for x in given if x is not None], vectors)

    def prepare_in_place(self, *maps: Tensor | None) -> "PreparedQuantized | None":
        """A gated sum reads each pixel of a once, before it writes the result's: both may be the same memory."""
        a = maps[0]
        same = self._first and self.form.output is not None and a is not None and a.dtype == torch.uint8
        if not same or a is None or not a.is_contiguous(memory_format=torch.channels_last) or not self.takes(*maps):
            return None
        prepared = self.prepared(*maps)
        assert isinstance(prepared, PreparedQuantized)
        return prepared

    def takes(self, *maps: Tensor | None) -> bool:
        """Whether the kernel reads the maps where they lie, without a copy."""
        return all(x is None or self._ready(x, i) is x for i, x in enumerate(maps))

    def _sorted(self, maps: Sequence[Tensor | None]) -> tuple[list[Tensor], Tensor | None, Tensor | None]:
        """Inputs, addend, gate."""
        count = len(self.form.inputs)
        if self._first:
            return [x for x in maps[1:] if x is not None], maps[0], None
        rest = [*maps[count:], None, None]
        return [x for x in maps[:count] if x is not None], rest[0], rest[1]

    def _ready(self, x: Tensor, index: int) -> Tensor:
        """The map as the kernel takes it. Raises BadInput unless it is uint8 or float32, on the CPU."""
        if x.dim() == 2:
            return x if x.dtype == torch.float32 and x.is_contiguous() else x.float().contiguous()
        if x.dtype not in (torch.uint8, torch.float32) or x.device.type not in ("cpu", "meta") or x.dim() != 4:
            raise BadInput(f"quantized kernels take maps N C H W of uint8 or float32, got {x.dtype} {tuple(x.shape)}")
        if x.shape[2] * x.shape[3] * max(x.shape[1], x.stride(3)) * x.itemsize >= 2**31:
            raise BadInput(f"a sample of {tuple(x.shape[1:])} has 2³¹ bytes or more: the CPU kernels count in 32 bits")
        inputs = range(self._first, self._first + len(self.form.inputs))
        if x.dtype == torch.float32 and (index not in inputs or isinstance(self.form.form, MaxPool)):
            by = self.form.inputs[0] if index in inputs else self.form.addend
            assert by is not None
            x = quantized(x, by)
        return x if pixel_stride(x) or (x.dtype == torch.float32 and x.is_contiguous()) else ensure_nhwc(x)

    def _prepare(self, *maps: Tensor | None) -> "PreparedQuantized":
        """Pointers: maps, averages of a gated sum, packed numbers, result, its averages."""
        form, kind = self.form, self.form.form
        inputs, addend, gate = self._sorted(maps)
        n, _, h, w = inputs[0].shape
        size = form.size(h, w)
        given = [x for x in maps if x is not None]
        averages = 1 + len(inputs) if self._first else 0
        packed = len(given) + averages
        out, count = packed + 1, packed + 2 + form.average
        rows = h if isinstance(kind, Upsample) else size[0]
        plan = Plan(int8_abi.vector_bytes(), n, rows, self.arithmetic)
        channels = PerChannel.of(form.inputs, channels_of(kind))
        parts = [
            Part(plan.map(x, index), x.shape[1], by=by)
            for index, (x, by) in enumerate(zip(inputs, form.inputs, strict=True), self._first)
        ]
        at = 0 if self._first else len(inputs)
        added = None if addend is None or form.addend is None else (plan.map(addend, at), form.addend)
        o = form.width
        into = plan.memory(out, size, o, math.prod(size) * o if n > 1 else 0, form.dtype)
        if isinstance(kind, Separable):
            steps = SeparableSteps(plan, form, kind, self.weights)
            steps.run(parts, channels, (h, w), into, added, -1 if gate is None else len(given) - 1)
        elif isinstance(kind, Grouped):
            grouped_steps(plan, form, kind, self.weights, parts, channels, size, into, added)
        elif isinstance(kind, Upsample):
            upsample_steps(plan, form, kind, self.weights, parts, channels, (h, w), out)
        elif isinstance(kind, GatedSum):
            assert added is not None
            gated_sum_steps(plan, form, kind, self.weights, parts, channels, into, added[0], len(given))
        else:
            plan.pool(parts[0].place, into, kind.kernel, kind.stride, (kind.padding[0], kind.padding[2]))
        average = None
        if form.average and form.output is not None:
            average = into, out + 1, kind.factor if isinstance(kind, Upsample) else 1, form.output
        call = plan.call(self.cpu, torch.get_num_threads(), packed, count, average)
        return PreparedQuantized(call, self._shared(plan.packed()), (n, o, *size), form, averages)

    def _shared(self, numbers: Tensor) -> Tensor:
        """The packed numbers; those of another shape where they are the same."""
        return self._numbers.setdefault(numbers.numpy().tobytes(), numbers)


class PreparedQuantized(PreparedKernel):
    """A quantized primitive for one set of shapes."""

    method = "int8"

    def __init__(
        self, call: Int8Call, numbers: Tensor, size: tuple[int, int, int, int], form: Quantized, averages: int
    ) -> None:
        super().__init__(call, [numbers], size, form.average, form.dtype)
        self._averages = averages

    def filled(self, maps: Sequence[Tensor], averages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """New outputs from the maps and the averages of a gated sum."""
        return self(*maps, *averages)

    def launch(self, averages: Sequence[Tensor] = ()) -> KernelLaunch:
        """One call on memory that exists; its operands are the maps, the result, and its average if there is one."""
        return self._launched([*averages, *self.weights])
