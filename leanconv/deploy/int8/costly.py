"""Which layers int8 costs most: each is quantised alone, and the network's error on calibration pictures is measured.

A layer alone in int8: its input is rounded to 8 bits (a range for the whole map, from the calibration data), its
weights to 8 bits (a range for each output channel). Everything else stays in float. The layers are ordered first by
their own output's error; the worst of them are then measured at the network's output, while there is time.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from leanconv.deploy.int8.calibration import relative_squared_error

SECONDS, CALLS, SHOWN = 10.0, 2, 3
# Calls with weights, by the name of PyTorch's operator: the axis of the output channels in the weight.
_AXES = {
    "conv1d": 0,
    "conv2d": 0,
    "conv3d": 0,
    "convolution": 0,
    "linear": 0,
    "conv_transpose1d": 1,
    "conv_transpose2d": 1,
}


@dataclass(frozen=True)
class Layer:
    """A layer's name in the model and the network's relative squared error if it alone is in int8."""

    name: str
    loss: float

    def __str__(self) -> str:
        return f"{self.name} ({self.loss:.2g})"


@torch.no_grad()
def costly_layers(program: ExportedProgram, calls: Sequence[Sequence[Tensor]], seconds: float = SECONDS) -> list[Layer]:
    """Return the layers that were measured, the costliest first. Empty if the program has no such layer.

    Args:
        program: a flat program of the float model.
        calls: tensors of calibration calls in the program's shapes; the first few are used.
    """
    until = time.perf_counter() + seconds
    graph = program.module(check_guards=False)
    runner, calls = _Runner(graph), list(calls[:CALLS])
    answers = [runner.observed(call) for call in calls]
    order = sorted(runner.own(calls[0]).items(), key=lambda each: -each[1])
    found: dict[str, float] = {}
    for node, _ in order:
        if found and time.perf_counter() > until:
            break
        errors = [
            relative_squared_error(answer, runner.with_int8(node, call))
            for call, answer in zip(calls, answers, strict=True)
        ]
        name = _name(node)
        found[name] = max(found.get(name, 0.0), sum(errors) / len(errors))
    return sorted((Layer(name, loss) for name, loss in found.items()), key=lambda each: -each.loss)


def most(layers: Sequence[Layer]) -> str:
    """The words for the costliest layers, or "" if none is known."""
    return f"int8 costs most in {', '.join(map(str, layers[:SHOWN]))}" if layers else ""


class _Runner(fx.Interpreter):
    """Runs a program, and one of its layers in int8 if asked."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self._ranges: dict[fx.Node, tuple[float, float]] = {}
        self._each: Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any] | None = None

    def observed(self, call: Sequence[Tensor]) -> list[Tensor]:
        """Run in float and widen the ranges of all layers' inputs."""

        def each(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            low, high = self._ranges.get(node, (0.0, 0.0))
            self._ranges[node] = min(low, float(args[0].min())), max(high, float(args[0].max()))
            return None

        return self._run(call, each)

    def own(self, call: Sequence[Tensor]) -> dict[fx.Node, float]:
        """Each layer's relative squared error at its own output, its input in float."""
        found: dict[fx.Node, float] = {}

        def each(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            exact = node.target(*args, **kwargs)  # type: ignore[operator]
            found[node] = relative_squared_error([exact], [self._int8(node, args, kwargs)])
            return exact

        self._run(call, each)
        return found

    def with_int8(self, layer: fx.Node, call: Sequence[Tensor]) -> list[Tensor]:
        return self._run(call, lambda node, args, kwargs: self._int8(node, args, kwargs) if node is layer else None)

    def _run(self, call: Sequence[Tensor], each: Callable[..., Any]) -> list[Tensor]:
        self._each = each
        found = self.run(*[t.clone() for t in call])
        return list(found) if isinstance(found, list | tuple) else [found]

    def run_node(self, n: fx.Node) -> Any:
        if _axis(n) is not None and self._each is not None:
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            answer = self._each(n, args, kwargs)
            if answer is not None:
                return answer
        return super().run_node(n)

    def _int8(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        axis = _axis(node)
        assert axis is not None
        x, weight, *rest = args
        answer: Tensor = node.target(_map(x, *self._ranges[node]), _weight(weight, axis), *rest, **kwargs)  # type: ignore[operator]
        return answer


def _axis(node: fx.Node) -> int | None:
    """The axis of the output channels in the weight of a layer. None if the node is no layer."""
    if node.op != "call_function" or len(node.args) < 2:
        return None
    return _AXES.get(getattr(node.target, "__name__", "").partition(".")[0])


def _map(x: Tensor, low: float, high: float) -> Tensor:
    """`x` rounded to 256 levels from `low` to `high`, one of which is 0."""
    step = (high - low) / 255 or 1.0
    zero = round(-low / step)
    return ((x / step).round() + zero).clamp(0, 255).sub(zero).mul(step)


def _weight(weight: Tensor, axis: int) -> Tensor:
    """The weights rounded to 255 levels around 0, for each output channel."""
    others = [each for each in range(weight.dim()) if each != axis]
    step = weight.abs().amax(others, keepdim=True) / 127
    step = torch.where(step > 0, step, 1.0)
    return (weight / step).round() * step


def _name(node: fx.Node) -> str:
    """The layer's name in the user's model; the node's own if it is in no module."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return _without_wrappers(paths[-1]) if paths else node.name


def _without_wrappers(path: str) -> str:
    return path.removeprefix("model.") or path
