"""Dynamic shapes: a program that contains lengths of the example is captured again with symbols for them.

Most networks contain none: convolutions, pools and averages take any size. Networks that reshape maps (attention,
dynamic convolutions, windows) or fill a grid contain some. They would run at the example's size alone.
"""

import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from leanconv.engine.fused.ir.graph import Graph
from leanconv.engine.fused.ir.kinds.call import Call
from leanconv.engine.fused.ir.kinds.data_movement import Pad
from leanconv.engine.workbench import Workbench

aten = torch.ops.aten
# Arguments of aten operators that are lengths of axes, positions on them, or numbers computed from lengths.
LENGTHS = frozenset({
    "size", "shape", "output_size", "start", "end", "length", "repeats", "sizes", "split_size", "split_sizes", "pad",
    "shifts", "other",
})  # fmt: skip
OPEN_END = 1 << 31  # a slice to the end has the largest number as its stop
# Limit on the thread's time for a capture with dynamic height and width. Where a formula pads or divides sizes, symbols
# grow from layer to layer: tf_efficientnet_lite0 (TensorFlow's "same") takes 445 s of a Zen 4 core, mobilevit_s 66 s
# (2.6 s with a dynamic batch alone), a ResNet-18 of ODConv 7 s.
OPENING_S = 5.0


class TookTooLong(Exception):
    """A capture with dynamic shapes exceeded its limit."""


def holds_sizes(program: ExportedProgram, graph: Graph) -> bool:
    """Whether the graph may contain lengths of the example. (A length of a weight looks the same.)"""
    made = [n for n in program.graph.nodes if n.op == "call_function" and not n.all_input_nodes]
    if any(isinstance(value := n.meta.get("val"), Tensor) and value.numel() > 1 for n in made):
        return True
    if any(isinstance(node.op, Pad) for node in graph.nodes):  # around no block: it brings a map to another's size
        return True
    return any(_is_length(value) for node in graph.nodes if isinstance(node.op, Call) for value in _lengths(node.op))


def _lengths(call: Call) -> Iterator[Any]:
    """The constants of a call that may be lengths."""
    if not isinstance(call.target, torch._ops.OpOverload) or call.target is aten.unflatten.int:
        return  # fusion adds unflatten, of channels
    arguments = call.target._schema.arguments
    named = [*zip((a.name for a in arguments), call.args, strict=False), *call.kwargs.items()]
    for name, value in named:
        if name in LENGTHS:
            values = value if isinstance(value, list | tuple) else [value]
            # A crop, even of one row: it brings a map to the size of another.
            yield from [OPEN_END - 1] if name == "pad" and any(_is_crop(v) for v in values) else values


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and 1 < abs(value) < OPEN_END


def _is_crop(value: Any) -> bool:
    return isinstance(value, int) and value < 0


def capture_dynamic(bench: Workbench, *, spatial: bool) -> tuple[ExportedProgram, list[Size]]:
    """The workbench's model with a dynamic batch (and height and width, if `spatial`), and the example's shapes.

    The trace has at least two samples, because PyTorch takes one for a constant. Raises TookTooLong.
    """
    batch, tensors, axes = bench.tensors[0].shape[:1], [], {}
    for i, tensor in enumerate(bench.tensors):
        axes[i] = {2: "height", 3: "width"} if tensor.dim() == 4 and spatial else {}
        if tensor.shape[:1] == batch != ():
            axes[i][0] = "batch"
            tensor = torch.cat([tensor, tensor]) if tensor.shape[0] == 1 else tensor
        tensors.append(tensor)
    with _no_longer_than(OPENING_S, bench.folded) if spatial else nullcontext(), _OpenGrids():
        program = bench.captured(tensors, axes)
    return program, [tensor.shape for tensor in bench.tensors]


class _OpenGrids(TorchFunctionMode):
    """Replaces `torch.linspace` over a symbolic length, which PyTorch does not take, by operators that take one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.linspace:
            given = inspect.signature(_linspace).bind(*args, **kwargs or {}).arguments
            numbers = isinstance(given["start"], int | float) and isinstance(given["end"], int | float)
            if numbers and isinstance(given["steps"], torch.SymInt):
                return _linspace(**given)
        return func(*args, **kwargs or {})


def _linspace(
    start: Any, end: Any, steps: Any, *, dtype: torch.dtype | None = None, device: Any = None, **rest: Any
) -> Tensor:
    """PyTorch's own formula: from both ends to the middle."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    at = torch.arange(steps, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    step = (end - start) / torch.sym_max(steps - 1, 1)
    return torch.where(2 * at < steps, start + step * at, end - step * (steps - 1 - at)).to(dtype)


@contextmanager
def _no_longer_than(seconds: float, model: nn.Module) -> Iterator[None]:
    """Raise TookTooLong from the next layer once the thread has computed for so long."""
    end = time.thread_time() + seconds

    def look(*_: object) -> None:
        if time.thread_time() > end:
            raise TookTooLong(f"more than {seconds:g} s")

    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(look))
        yield
    finally:
        for handle in handles:
            handle.remove()
