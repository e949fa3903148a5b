"""The form "kernel": the primitive's kernel for this machine's CPU, bound to the node's weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.lowering.primitives import primitive
from leanconv.kernels import cpu_reason
from leanconv.kernels.cpu.tuning.cpu import Cpu

DTYPES = (torch.float32, torch.bfloat16)  # of maps
_BEYOND = 4096  # bytes behind a map: a kernel's vectors may read past its end


class Prepared(NamedTuple):
    """Calls of the runtime for given inputs, what they make, and what their addresses belong to."""

    calls: list[Any]
    result: Tensor
    kept: Any


def _launched(steps: Sequence[Prepared]) -> Callable[[], None]:
    """All of them in one call of the runtime."""
    from leanconv.kernels.cpu.runtime.launch import LaunchBatch

    run = LaunchBatch([call for step in steps for call in step.calls], torch.get_num_threads())

    def call(_kept: Any = steps) -> None:  # the addresses are theirs
        run()

    return call


def _plain(average: Tensor) -> bool:
    return average.is_contiguous() and average.dtype == torch.float32


class KernelRun:
    """A bound kernel called with a node's inputs.

    `maps` and `averages` say which of the inputs, or of anything that stands for them, are the kernel's maps (None
    where it could have one and has none) and, for a gated sum, the averages.
    """

    def __init__(self, node: Node, bound: Any, form: Any) -> None:
        self.bound, self.average = bound, bool(getattr(form, "average", False))
        self._op = node.op
        self.gate = isinstance(node.op, Block) and node.op.gate

    def maps(self, inputs: Sequence[Any]) -> list[Any]:
        return self._op.maps(inputs)

    def averages(self, inputs: Sequence[Any]) -> list[Any]:
        return self._op.averages(inputs)

    def step(self, maps: Sequence[Any]) -> Any:
        """The bound kernel's step for these maps; None where it would read a copy of one, or a gate's bits as float32's
        that are not.
        """
        from leanconv.kernels.cpu.runtime.tensors import pixel_stride

        flat = [*maps[:-1], maps[-1].flatten(1)] if self.gate else list(maps)
        first, *rest = flat[:-1] if self.gate else flat
        if not self.bound.takes(first) or any(x is not None and not pixel_stride(x) for x in rest):
            return None
        if self.gate and not (flat[-1].is_contiguous() and flat[-1].dtype == torch.float32):
            return None
        return self.bound.step(*flat)

    def meet(self, inputs: Sequence[Tensor]) -> None:
        """Make the step for inputs like these, and its kernels."""
        self.step(self.maps(inputs))

    def launch(self, inputs: Sequence[Tensor]) -> Callable[[], None] | None:
        """The kernel on these inputs as a plan runs it: into memory that is there, nothing checked. For measuring."""
        prepared = self.prepared(inputs)
        return prepared and _launched([prepared])

    def prepared(self, inputs: Sequence[Tensor]) -> "Prepared | None":
        """The calls on these inputs, with memory of their own; None where a plan would not run them so."""
        maps = self.maps(inputs)
        step = self.step(maps)
        averages = [x.flatten(1) for x in self.averages(inputs)]
        if step is None or not step.program.native or not all(map(_plain, averages)):
            return None
        from leanconv.kernels.cpu.runtime.huge_pages import huge_page_buffer

        kept = [x for x in maps if x is not None]
        calls: list[Any] = []
        if averages:
            kept.append(torch.empty(step.size[0], 3, step.size[1], dtype=torch.float32))
            calls.append(self.bound.gates(averages[0], averages[1:], kept[-1]))
        count = math.prod(step.size)
        result = huge_page_buffer(count * step.dtype.itemsize + _BEYOND)[: count * step.dtype.itemsize].view(step.dtype)
        result = result.as_strided(step.size, step.strides)
        kept += [*step.weights, result, torch.empty(step.size[:2], dtype=torch.float32)]
        pointers = step.program.pointers()
        for index in range(len(pointers)):
            pointers[index] = kept[index].data_ptr()
        return Prepared([*calls, (step.program, pointers)], result, (kept, step))

    def __call__(self, *inputs: Tensor) -> Any:
        maps = self.maps(inputs)
        if isinstance(self._op, GatedSum):
            first, *rest = [x.flatten(1) for x in self.averages(inputs)]
            y, average = self.bound(maps[0], maps[1:], first, rest)
        elif isinstance(self._op, Block):
            count = self._op.concat
            extra = maps[count:] if not self.gate else [maps[count], maps[count + 1].flatten(1)]
            y, average = self.bound(maps[:count], *extra)
        else:
            y, average = self.bound(maps if isinstance(self._op, Upsample) else maps[0])
        return (y, average[:, :, None, None]) if self.average else y


def kernel(node: Node, cpu: Cpu | None = None) -> KernelRun | None:
    """The bound kernel of a node; None where no kernel covers it, or this machine has none.

    `cpu`: the processor that it is chosen for (default: this one).
    """
    if cpu_reason() or node.dtype not in DTYPES or (found := primitive(node)) is None:
        return None
    from leanconv.kernels.cpu import BINDERS, bind

    form, weights = found
    return KernelRun(node, bind(form, weights, cpu), form) if type(form) in BINDERS else None


Finish = Callable[[Node], Callable[..., Any] | None]


class SplitRun:
    """A block as two steps: its stencils in a kernel, then its 1×1 as `finish` makes it (default: in a kernel, too),
    with the map between them in memory.

    Where the map does not stay in the cache anyway this can be faster: each has a schedule of its own.
    """

    def __init__(self, node: Node, finish: Finish | None, cpu: Cpu | None) -> None:
        block: Block = node.op  # type: ignore[assignment]
        maps = node.inputs[: block.concat]
        h, w = maps[0].shape[2:]
        for stage in block.stages[:-1]:
            h, w = stage.size(h, w)
        shape = (node.shape[0], block.stages[-2].o, h, w)
        head = Block(block.stages[:-1], block.concat)
        self.head = Node(head, maps, shape, node.dtype, f"{node.name}.stencils")
        tail = replace(block, stages=block.stages[-1:], concat=1)
        inputs = [self.head, *node.inputs[block.concat :]]
        self.tail = Node(tail, inputs, node.shape, node.dtype, node.name)
        self.concat = block.concat
        first, second = kernel(self.head, cpu), finish(self.tail) if finish else kernel(self.tail, cpu)
        if first is None or second is None:
            raise ValueError("no kernel for a part of it")
        self.first, self.second = first, second

    def __call__(self, *inputs: Tensor) -> Any:
        return self.second(self.first(*inputs[: self.concat]), *inputs[self.concat :])

    def meet(self, inputs: Sequence[Tensor]) -> None:
        """Make the steps for inputs like these, and their kernels."""
        self.first.meet(inputs[: self.concat])
        if isinstance(self.second, KernelRun):
            between = torch.empty(self.head.shape, dtype=self.head.dtype).contiguous(memory_format=torch.channels_last)
            self.second.meet([between, *inputs[self.concat :]])

    def launch(self, inputs: Sequence[Tensor]) -> Callable[[], None] | None:
        """Both steps as a plan runs them, one after the other. For measuring."""
        first, run = self.first.prepared(inputs[: self.concat]), self.second
        if first is None:
            return None
        between = [first.result, *inputs[self.concat :]]
        if isinstance(run, KernelRun):
            second = run.prepared(between)
            return second and _launched([first, second])
        stencils, product = _launched([first]), partial(run, *between)

        def call() -> None:
            stencils()
            product()

        return call


def split(node: Node, finish: Finish | None = None, cpu: Cpu | None = None) -> SplitRun | None:
    """Two steps for a block of stencils and a 1×1; None for other blocks, and where there are no kernels."""
    block: Block = node.op  # type: ignore[assignment]
    if cpu_reason() or node.dtype not in DTYPES or len(block.stages) < 2 or not block.stages[-1].pointwise:
        return None
    return None if block.parallel or primitive(node) is None else SplitRun(node, finish, cpu)
