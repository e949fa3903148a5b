"""The cost of a training step: its time, interleaved with the other models', and its peak memory."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from leanconv.copies import copied
from leanconv.errors import BadInput
from leanconv.measure.device import describe, label
from leanconv.measure.state import bare, layout_of, main_input
from leanconv.measure.timing.latency import Timing, interleave, synchronize
from leanconv.running import run, tensors, untouched_random
from leanconv.table import si, table

# The ways to run a step; the cheapest differs between operators and devices.
SETTINGS = ("eager", "channels_last", "compile", "compile channels_last")


@dataclass(frozen=True)
class StepCost:
    """Forward, backward and SGD step of one model in one setting.

    Attributes:
        ratio: time against the first model in the first setting; above 1 is slower.
        peak_bytes: highest sum of parameters, buffers, gradients, momentum and activations, as torch's allocator counts
            it. A library's own scratch memory is not in it.
    """

    name: str
    setting: str
    timing: Timing
    ratio: float
    peak_bytes: int


@dataclass(frozen=True)
class TrainingComparison:
    """Training steps side by side; the first one is the base of every ratio."""

    steps: tuple[StepCost, ...]
    device: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]
    label: str
    clock: str = "wall"

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "clock": self.clock,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "batch": self.shape[0],
            "steps": [
                {
                    "name": s.name,
                    "setting": s.setting,
                    "ms": s.timing.to_dict(),
                    "ratio": s.ratio,
                    "peak_bytes": s.peak_bytes,
                }
                for s in self.steps
            ],
        }

    def __str__(self) -> str:
        first = self.steps[0]
        head = ["model", "setting", "step ms", "IQR", f"× {first.name} {first.setting}", "peak memory"]
        rows = [
            [
                s.name,
                s.setting,
                f"{s.timing.median_ms:.4g}",
                f"{s.timing.iqr_ms:.2g}",
                f"{s.ratio:.2f}",
                si(s.peak_bytes) + "B",
            ]
            for s in self.steps
        ]
        note = f"a step is forward, backward and SGD; {first.timing.rounds} rounds, in turns, {self.clock} time; "
        note += "ratios below 1 are faster"
        return table(head, rows, title=f"training step: {self.label}", note=note)


def compare_training(
    models: Mapping[str, nn.Module],
    inputs: Any,
    *,
    settings: Sequence[str] = ("eager",),
    autocast: torch.dtype | None = None,
    budget_s: float = 10.0,
    min_rounds: int = 5,
    clock: str = "wall",
    on_round: Callable[[float], object] | None = None,
) -> TrainingComparison:
    """Time a training step of every model in every setting, in turns, and measure its peak memory.

    The steps run on copies; the models are left as they were. The loss is the mean square of every floating-point
    output: its cost is small beside the network's.

    Args:
        models: name -> model; the first one in the first setting is the base of every ratio.
        settings: out of `SETTINGS`.
        autocast: run forward and loss under autocast of that type (bfloat16).
        budget_s: seconds of timing over all candidates, warm-up and compilation not counted; `min_rounds` are done.
        clock: "wall", or "cpu" for one thread's own computing time on a crowded machine (see `latency.interleave`).
    Raises: BadInput for an unknown setting, no models, or a model without trainable parameters.
    """
    if not models or not settings:
        raise BadInput("nothing to compare: no models or no settings were given")
    if unknown := [setting for setting in settings if setting not in SETTINGS]:
        raise BadInput(f"unknown training setting {unknown[0]!r}; known: {', '.join(SETTINGS)}")
    x = main_input(inputs)
    with untouched_random():
        steps = {
            (name, setting): TrainingStep(model, inputs, setting, autocast)
            for name, model in models.items()
            for setting in settings
        }
        labels = {f"{name} {setting}": step for (name, setting), step in steps.items()}
        timings = interleave(labels, budget_s=budget_s, min_rounds=min_rounds, clock=clock, on_round=on_round)
        peaks = {text: step.peak_bytes() for text, step in labels.items()}
    base = next(iter(timings.values())).median_ms
    costs = tuple(
        StepCost(name, setting, timings[text], timings[text].median_ms / base, peaks[text])
        for (name, setting), text in zip(steps, labels, strict=True)
    )
    dtype = autocast or x.dtype
    return TrainingComparison(
        costs,
        describe(x.device),
        str(dtype).removeprefix("torch."),
        tuple(x.shape),
        label(x.device, dtype=dtype, layout="" if len(settings) > 1 else layout_of(x), shape=x.shape),
        clock,
    )


class TrainingStep:
    """One model's step, ready to be called again and again with the same work in every call.

    An input gets a gradient if it requires one: the input of an inner layer does, an image does not.
    """

    def __init__(self, model: nn.Module, inputs: Any, setting: str, autocast: torch.dtype | None = None) -> None:
        self.model = copied(bare(model)).train()
        self.inputs = pytree.tree_map_only(Tensor, _own, inputs)
        if "channels_last" in setting:
            # nn.Module.to has no overload that types a memory format alone
            self.model = self.model.to(memory_format=torch.channels_last)
            self.inputs = pytree.tree_map_only(Tensor, _channels_last, self.inputs)
        self.wanted = [t for t in tensors(self.inputs) if t.requires_grad]
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not trained:
            raise BadInput("a training step needs trainable parameters; the model has none")
        # A rate of zero keeps the numbers where they are: no step overflows, and every one does the same work.
        self.optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9)
        self.device_type, self.autocast = trained[0].device.type, autocast
        self.forward: Callable[..., Any] = self.model
        if "compile" in setting:
            self.forward = torch.compile(self.model, dynamic=False)

    def __call__(self) -> None:
        self._forget_gradients()
        with torch.autocast(self.device_type, self.autocast, enabled=self.autocast is not None):
            outputs = [t for t in tensors(run(self.forward, self.inputs)) if t.is_floating_point()]
            # Not `mean`: its backward writes out a whole contiguous map, which would slow a channels_last network down.
            loss = sum((t.float().square().sum() / max(1, t.numel()) for t in outputs), torch.zeros(()))
        loss.backward()
        self.optimizer.step()

    def _forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for tensor in self.wanted:
            tensor.grad = None

    def peak_bytes(self) -> int:
        """The most memory that torch holds for this model at any moment of a step."""
        self._forget_gradients()
        states = [t for state in self.optimizer.state.values() for t in tensors(state)]
        held = [*self.model.parameters(), *self.model.buffers(), *states]
        kept = sum(t.numel() * t.element_size() for t in held)
        return kept + peak_bytes(self, self.device_type)


def peak_bytes(call: Callable[[], object], device_type: str = "cpu") -> int:
    """The peak of bytes that torch's allocator takes during a call, beside those that it held before."""
    if device_type != "cuda":
        return _allocator_peak(call)
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    synchronize()
    return torch.cuda.max_memory_allocated() - before


def _own(tensor: Tensor) -> Tensor:
    """The same numbers as a new leaf; it gets a gradient if the original does."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4:
        return tensor
    return tensor.detach().contiguous(memory_format=torch.channels_last).requires_grad_(tensor.requires_grad)


def _allocator_peak(call: Callable[[], object]) -> int:
    """The peak of bytes that torch's CPU allocator holds during a call."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    # One cycle only: `acc_events` keeps torch 2.11 from warning about forgotten ones.
    with _quiet_kineto(), profile(activities=activities, profile_memory=True, acc_events=True) as seen:
        call()
    recorded = seen.profiler.kineto_results if seen.profiler is not None else None
    events = [event for event in recorded.events() if event.name() == "[memory]"] if recorded is not None else []
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _quiet_kineto() -> Iterator[None]:
    """Silence Kineto, torch's profiler, on stderr; it reads its log level when a profile starts."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("KINETO_LOG_LEVEL", None)
