"""The implementations of kernels: a node's primitive bound to its weights by the backend.

"kernel" is the primitive as it is, "tiles" has its products on matrix tiles. "merged" fills the vectors of narrow
groups: some become one, with zeros between them. "split" and "tiles+tiles" are two steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from leanconv.engine.fused.ir.graph import Node
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.lowering.primitives import primitive
from leanconv.kernels import Target, backend
from leanconv.kernels.interface import Bound, Launch, Prepared
from leanconv.ops.forms import Form
from leanconv.ops.grouped import Grouped, fewer_groups, merge_groups
from leanconv.ops.quantized import MOST_WEIGHT, Quantized

T = TypeVar("T")  # a tensor, or what stands for it: its place in a program


class LaunchReady(NamedTuple):
    """A launch with memory of its own, its result, and the tensors whose memory it uses."""

    launch: Launch
    result: Tensor
    kept: list[Tensor]


def _launched(ready: Sequence[LaunchReady]) -> Callable[[], None]:
    """All of them as one batch."""
    run = backend().batch([each.launch for each in ready])

    def call(_kept: Sequence[LaunchReady] = ready) -> None:  # the launches hold addresses alone
        run()

    return call


class KernelRun:
    """A bound kernel called with a node's inputs.

    `maps` and `averages` select from the inputs, or from what stands for them. A map that the kernel could have and has
    not is None; averages belong to a gated sum.
    """

    def __init__(self, node: Node, bound: Bound, form: Form) -> None:
        self.bound, self.average = bound, form.average
        self._op = node.op
        self.gate = isinstance(node.op, Block | Integer) and node.op.gate

    def maps(self, inputs: Sequence[T]) -> list[T | None]:
        return self._op.maps(inputs)

    def averages(self, inputs: Sequence[T]) -> list[T]:
        return self._op.averages(inputs)

    def _flat(self, maps: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The maps as the primitive takes them: its gate is `N C`, without height and width."""
        *others, last = maps
        return [*others, last.flatten(1)] if self.gate and last is not None else list(maps)

    def prepare(self, maps: Sequence[Tensor | None]) -> Prepared | None:
        """The kernel to be launched on maps like these; None where they would be copied first."""
        return self.bound.prepare(*self._flat(maps))

    def meet(self, inputs: Sequence[Tensor]) -> None:
        """Prepare for inputs like these."""
        self.prepare(self.maps(inputs))

    def launch(self, inputs: Sequence[Tensor]) -> Callable[[], None] | None:
        """The kernel on these inputs as a plan runs it: on memory that exists, without checks. For measuring."""
        ready = self.ready(inputs)
        return ready and _launched([ready])

    def ready(self, inputs: Sequence[Tensor]) -> LaunchReady | None:
        """The launch on these inputs, with a result of its own; None where a plan would not launch it."""
        maps = self.maps(inputs)
        prepared = self.prepare(maps)
        averages = [x.flatten(1) for x in self.averages(inputs)]
        if prepared is None or not all(x.is_contiguous() and x.dtype == torch.float32 for x in averages):
            return None
        size = math.prod(prepared.size) * prepared.dtype.itemsize
        result = backend().allocate(size, huge=True)[:size].view(prepared.dtype)
        result = result.as_strided(prepared.size, prepared.strides)
        operands = [*[x for x in maps if x is not None], result]
        if prepared.average:
            operands.append(torch.empty(prepared.size[:2], dtype=torch.float32))
        launch = prepared.launch(averages)
        for index, tensor in enumerate(operands):
            launch.put(index, tensor)
        return LaunchReady(launch, result, operands)

    def __call__(self, *inputs: Tensor) -> Any:
        averages = [x.flatten(1) for x in self.averages(inputs)]
        y, average = self.bound.run(self._flat(self.maps(inputs)), averages)
        return (y, average[:, :, None, None]) if self.average else y


def kernel(node: Node, target: Target | None = None) -> KernelRun | None:
    """The bound kernel of a node; None where no kernel covers it, or this machine has none.

    `target`: what it is chosen for (default: this machine).
    """
    if not isinstance(node.op, Integer | Quantize | Dequantize) and not _runs(node):
        return None
    if backend().why_not() or (found := primitive(node)) is None:
        return None
    form, weights = found
    bound = backend().bind(form, weights, target)
    return None if bound is None else KernelRun(node, bound, form)


def tiles(node: Node, target: Target | None = None) -> KernelRun | None:
    """Likewise, its products on matrix tiles (AMX), in bfloat16 or 8-bit integers; None where no such kernel covers it.

    Their AVX512-BF16 is not offered on other processors: Halide's is at the peak too, and was never slower there
    (`benchmarks/bf16_blocks.py`, one Zen 4 core).
    """
    integers = isinstance(node.op, Integer)
    if not (target or Target()).cpu.amx or not (integers or node.dtype == torch.bfloat16):
        return None
    if backend().why_not() or not (integers or _runs(node)) or (found := primitive(node)) is None:
        return None
    bound = backend().bind_to_tiles(*found, target)
    return None if bound is None else KernelRun(node, bound, found[0])


def merged(node: Node, target: Target | None = None) -> KernelRun | None:
    """The kernel of fewer, wider groups, which fill a vector; None for other nodes.

    Integers run as the dense convolution, on tiles where there are any. Direct arithmetic leaves groups of floating
    point as they are: a NaN would reach the others.
    """
    target = target or Target()
    if isinstance(node.op, Integer):
        return _merged_integers(node, target)
    if not _runs(node) or target.arithmetic == "direct" or (found := primitive(node)) is None:
        return None
    form, weights = found
    if not isinstance(form, Grouped) or (groups := fewer_groups(form, target.cpu.lanes)) == form.groups:
        return None
    form, weights = merge_groups(form, weights, groups)
    bound = backend().bind(form, weights, target)
    return None if bound is None else KernelRun(node, bound, form)


def _merged_integers(node: Node, target: Target) -> KernelRun | None:
    """None too where the sum of a kernel's centre and the 1×1 beside it takes more than 8 bits."""
    if backend().why_not() or (found := primitive(node)) is None:
        return None
    form, weights = found
    assert isinstance(form, Quantized)
    if not isinstance(form.form, Grouped) or form.form.groups == 1:
        return None
    dense, wide = merge_groups(form.form, [w.short() if w.dtype == torch.int8 else w for w in weights], 1)
    if int(wide[0].abs().max()) > MOST_WEIGHT:
        return None
    form, weights = replace(form, form=dense), [w.char() if w.dtype == torch.short else w for w in wide]
    bind = backend().bind_to_tiles if target.cpu.amx else backend().bind
    bound = bind(form, weights, target)
    return None if bound is None else KernelRun(node, bound, form)


def _runs(node: Node) -> bool:
    return not backend().why_not() and node.dtype in backend().dtypes


Start = Callable[[Node], KernelRun | None]
Finish = Callable[[Node], Callable[..., Any] | None]


class SplitRun:
    """A block as two steps with a map in memory between them: its stencils or groups in a kernel, then its 1×1.

    `start` and `finish` give the steps. Two can be faster where the map does not stay in the cache anyway: each has a
    schedule of its own.
    """

    def __init__(self, node: Node, start: Start, finish: Finish) -> None:
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
        first, second = start(self.head), finish(self.tail)
        if first is None or second is None:
            raise ValueError("no kernel for a part of it")
        self.first, self.second = first, second

    def __call__(self, *inputs: Tensor) -> Any:
        return self.second(self.first(*inputs[: self.concat]), *inputs[self.concat :])

    def meet(self, inputs: Sequence[Tensor]) -> None:
        """Prepare both for inputs like these."""
        self.first.meet(inputs[: self.concat])
        if isinstance(self.second, KernelRun):
            between = torch.empty(self.head.shape, dtype=self.head.dtype).contiguous(memory_format=torch.channels_last)
            self.second.meet([between, *inputs[self.concat :]])

    def launch(self, inputs: Sequence[Tensor]) -> Callable[[], None] | None:
        """Both steps as a plan runs them, one after the other. For measuring."""
        first, run = self.first.ready(inputs[: self.concat]), self.second
        if first is None:
            return None
        between = [first.result, *inputs[self.concat :]]
        if isinstance(run, KernelRun):
            second = run.ready(between)
            return second and _launched([first, second])
        stencils, product = _launched([first]), partial(run, *between)

        def call() -> None:
            stencils()
            product()

        return call


def split(node: Node, finish: Finish | None = None, target: Target | None = None) -> SplitRun | None:
    """Two steps for a block of stencils or groups and a 1×1; None for other blocks, and where there are no kernels.

    `finish` gives the second one (default: a kernel, too).
    """
    ours = partial(kernel, target=target)
    return SplitRun(node, ours, finish or ours) if _splits(node) else None


def split_on_tiles(node: Node, target: Target | None = None) -> SplitRun | None:
    """Two steps on matrix tiles for groups and a 1×1, which no tiles multiply in one; None for other blocks."""
    ours = partial(tiles, target=target)
    here = (target or Target()).cpu.amx and node.dtype == torch.bfloat16
    return SplitRun(node, ours, ours) if here and _splits(node) and not node.op.is_separable else None  # type: ignore[attr-defined]


def _splits(node: Node) -> bool:
    block: Block = node.op  # type: ignore[assignment]
    if not _runs(node) or len(block.stages) < 2 or not block.stages[-1].pointwise:
        return False
    return not block.parallel and primitive(node) is not None
