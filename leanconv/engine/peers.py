"""Time models on every engine of this machine, interleaved: medians, spread, shares of the roofline floor and peak."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from leanconv.deploy.failures import root_cause
from leanconv.deploy.int8 import MAX_LOSS, Calibration
from leanconv.engine.candidate import Candidate
from leanconv.engine.candidates import CANDIDATES, EAGER, chosen
from leanconv.engine.fused.capture.export import NotCaptured
from leanconv.engine.fused.roofline import Floor, floor_of
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.measure import Timing, interleave, label
from leanconv.measure.device import describe
from leanconv.measure.hardware.roofline import Peaks, peaks
from leanconv.measure.timing.latency import check_clock
from leanconv.running import Inputs, as_call
from leanconv.table import table

OWN = "fused"  # our engine; all others are its peers
# All forms get FIRST_ROUNDS rounds. A form stays if it takes at most BEHIND times as long as its best peer.
FIRST_ROUNDS, BEHIND = 4, 1.2
Progress = Callable[[str, float], object]


@dataclass(frozen=True)
class EngineComparison:
    """The times of every correct form. Ratios are relative to the first model on our engine, or else on its best.

    Attributes:
        times: (model, engine) -> Timing. Slow forms have few rounds.
        floors: model -> its roofline floor. None if the model cannot be captured.
        refused: (model, engine) -> why it has no time.
        losses: (model, engine) -> the relative squared error of a form in int8 on the calibration data.
    """

    times: Mapping[tuple[str, str], Timing]
    floors: Mapping[str, Floor | None]
    refused: Mapping[tuple[str, str], str]
    peaks: Peaks
    label: str
    clock: str
    device: dict[str, Any] = field(default_factory=dict)
    losses: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @property
    def base(self) -> tuple[str, str]:
        first = next(iter(self.floors))
        own = [key for key in self.times if key[0] == first]
        return (first, OWN) if (first, OWN) in own else min(own, key=lambda key: self.times[key].median_ms)

    def share(self, key: tuple[str, str]) -> float | None:
        """The model's roofline floor divided by the form's time."""
        floor = self.floors[key[0]]
        return floor.ms / self.times[key].median_ms if floor else None

    def of_peak(self, key: tuple[str, str]) -> float | None:
        """The share of the peak flops at which the form computes the model's plain sums."""
        floor = self.floors[key[0]]
        return floor.compute_ms / self.times[key].median_ms if floor else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "times": {f"{model}, {engine}": timing.to_dict() for (model, engine), timing in self.times.items()},
            "floors": {model: floor.to_dict() for model, floor in self.floors.items() if floor},
            "refused": {f"{model}, {engine}": why for (model, engine), why in self.refused.items()},
            "peaks": self.peaks.to_dict(),
            "losses": {f"{model}, {engine}": loss for (model, engine), loss in self.losses.items()},
            "clock": self.clock,
            "machine": self.device,
        }

    def __str__(self) -> str:
        base = self.times[self.base].median_ms
        rows = []
        for (model, engine), timing in self.times.items():
            floor, share, peak = self.floors[model], self.share((model, engine)), self.of_peak((model, engine))
            rows.append(
                [
                    model,
                    engine,
                    f"{timing.median_ms:.4g}",
                    f"{timing.iqr_ms:.2g}",
                    str(timing.rounds),
                    f"{timing.median_ms / base:.2f}",
                    f"{floor.ms:.4g}" if floor else "-",
                    f"{share:.0%}" if share else "-",
                    f"{peak:.0%}" if peak else "-",
                ]
            )
        columns = ["model", "engine", "ms (median)", "IQR", "rounds", "times as long", "floor ms", "of the floor",
                   "of peak flops"]  # fmt: skip
        note = f"the engines in turns, {self.clock} time; times as long as {', '.join(self.base)}"
        reasons = [f"{model}, {engine}: {why}" for (model, engine), why in self.refused.items()]
        lost = [f"{model}, {engine}: loss {loss:.1e} in int8" for (model, engine), loss in self.losses.items()]
        return table(columns, rows, title=self.label, note=[note, str(self.peaks), *lost, *reasons])


@torch.no_grad()
def compare_engines(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    engines: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    budget_s: float = 10.0,
    clock: str = "wall",
    progress: Progress | None = None,
    on_form: Callable[[str, Any], object] | None = None,
    data: Any = None,
    max_loss: float = MAX_LOSS,
    others: Sequence[Candidate] = (),
) -> EngineComparison:
    """Prepare every engine as `optimize` does, verify it against its model, and time all of them in turns.

    Args:
        models: name -> model in eval mode. The models stay unchanged.
        inputs: the inputs for all models, in the form that `optimize` takes.
        engines: engines of `optimize`, with "eager" for the given model (default: all).
        dtype: the type that the engines compute in (None: the model's own). Inputs and outputs keep their own.
        budget_s: seconds of timing without preparation. At least six rounds run.
        clock: a clock of `measure.timing.latency.interleave`.
        progress: called with the current step and the share that is done.
        on_form: called with a label and each prepared form.
        data, max_loss: for torch.int8, as of `optimize`.
        others: engines beside those of `optimize`, which `engines` does not name.
    Raises: BadInput if no form of the first model can be timed, UnknownName for an unknown engine.
    """
    check_clock(clock)
    words = [EAGER, *CANDIDATES] if engines is None else list(engines)
    names = [EAGER] * (EAGER in words) + [each.name for each in chosen(words)]
    names.sort(key=words.index)
    known = CANDIDATES | {each.name: each for each in others}
    names += [each.name for each in others]
    top = peaks(dtype=dtype or torch.float32, clock=clock)
    item = (dtype or torch.float32).itemsize
    losses: dict[tuple[str, str], float] = {}
    forms: dict[tuple[str, str], Callable[[], object]] = {}
    floors: dict[str, Floor | None] = {}
    refused: dict[tuple[str, str], str] = {}
    args, kwargs = as_call(inputs)
    for i, (name, model) in enumerate(models.items()):
        bench = Workbench(model, args, kwargs, torch.get_num_threads())
        if dtype is torch.int8:
            bench.calibration = Calibration(model, inputs, data, max_loss=max_loss)
        for j, engine in enumerate(names):
            if progress:
                progress(f"{name}: preparing {engine}", (i * len(names) + j) / len(models) / len(names))
            form, why = (model, "") if engine == EAGER else _prepared(bench, known[engine], dtype)
            if form is None:
                refused[name, engine] = why
                continue
            if bench.calibration is not None and engine != EAGER:
                losses[name, engine] = bench.calibration.loss(form)
            if on_form:
                on_form(f"{name}, {engine}", form)
            forms[name, engine] = lambda form=form: form(*args, **kwargs)  # type: ignore[misc]
        floors[name] = _floor(bench, top, item)
    if not any(model == next(iter(models)) for model, _ in forms):
        raise BadInput(f"no engine runs {next(iter(models))}: {'; '.join(refused.values())}")
    times = _timed(forms, budget_s, clock, progress)
    title = label("cpu", dtype=dtype or torch.float32, shape=bench.tensors[0].shape if bench.tensors else None)
    return EngineComparison(times, floors, refused, top, title, clock, describe("cpu"), losses)


def _prepared(bench: Workbench, candidate: Candidate, dtype: torch.dtype | None) -> tuple[Any, str]:
    """Return (the form, ""), or (None, the reason)."""
    if why := bench.obstacle or candidate.why_not(bench, dtype):
        return None, why
    try:
        form = candidate.prepare(bench, dtype)
        seen, _ = bench.verify(form, dtype)
    except Exception as error:  # whatever an engine raises, the others go on
        return None, f"failed: {root_cause(error)}"
    if not seen.passes:
        return None, f"differs: {seen.problem or f'{seen.relative:.1e} of the output'}"
    return form, ""


def _floor(bench: Workbench, top: Peaks, item: int) -> Floor | None:
    try:
        return floor_of(bench, top, item)
    except NotCaptured:
        return None


def _timed(
    forms: Mapping[tuple[str, str], Callable[[], object]], seconds: float, clock: str, progress: Progress | None
) -> dict[tuple[str, str], Timing]:
    """Time a few rounds of all forms, then only the hopeful ones until the seconds are spent."""
    calls, keys = {str(i): call for i, call in enumerate(forms.values())}, list(forms)
    if progress:
        progress("the first rounds", 0.0)
    first = interleave(calls, budget_s=0, warmup=2, min_rounds=FIRST_ROUNDS, clock=clock)
    near = hopeful({keys[int(i)]: timing.median_ms for i, timing in first.items()})
    found = interleave(
        {i: call for i, call in calls.items() if keys[int(i)] in near},
        budget_s=seconds,
        warmup=0,
        min_rounds=6,
        max_rounds=2000,
        clock=clock,
        on_round=(lambda done: progress("in turns", done)) if progress else None,
    )
    return {keys[int(i)]: timing for i, timing in (first | found).items()}


def hopeful(times: Mapping[tuple[str, str], float]) -> set[tuple[str, str]]:
    """Return our engine, and the peers whose time is close to the best peer of their own model."""
    best: dict[str, float] = {}
    for (model, engine), ms in times.items():
        if engine != OWN:
            best[model] = min(ms, best.get(model, ms))
    return {(model, engine) for (model, engine), ms in times.items() if engine == OWN or ms <= BEHIND * best[model]}
