"""compare(): several models on the same input, counted, and timed interleaved."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.counting.count import Counts, count_recorded
from leanconv.measure.counting.record import record
from leanconv.measure.device import describe, label
from leanconv.measure.state import layout_of, main_input
from leanconv.measure.timing.latency import Timing, interleave
from leanconv.running import run, untouched
from leanconv.table import si, table

# Operations of a wrapper around a foreign runtime: it only hands tensors over.
_COPIES = {"clone", "copy_", "_to_copy", "contiguous"}


@dataclass(frozen=True)
class Entry:
    """One model of a comparison. `speedup` is against the first model; `fps` counts images, not batches.

    `counts` is None if the model computes outside torch, in a runtime's session.
    """

    name: str
    counts: dict[str, Counts] | None
    timing: Timing
    speedup: float
    fps: float


@dataclass(frozen=True)
class Comparison:
    """Models side by side; the first one is the base of every ratio."""

    entries: tuple[Entry, ...]
    device: dict[str, Any]
    dtype: str
    layout: str
    shape: tuple[int, ...]
    label: str
    clock: str = "wall"

    def __getitem__(self, name: str) -> Entry:
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise BadInput(f"no model {name!r} was compared; there are: {', '.join(e.name for e in self.entries)}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "clock": self.clock,
            "dtype": self.dtype,
            "layout": self.layout,
            "shape": list(self.shape),
            "batch": self.shape[0] if self.shape else 0,
            "models": [
                {
                    "name": e.name,
                    "params": e.counts["macs"].params if e.counts else None,
                    "macs": e.counts["macs"].flops if e.counts else None,
                    "ms": e.timing.to_dict(),
                    "speedup": e.speedup,
                    "fps": e.fps,
                    "conventions": {
                        name: {"unit": c.unit, "params": c.params, "flops": c.flops, "madd": c.madd}
                        for name, c in (e.counts or {}).items()
                    },
                }
                for e in self.entries
            ],
        }

    def __str__(self) -> str:
        extra = list(dict.fromkeys(name for e in self.entries for name in e.counts or {} if name != "macs"))
        head = ["model", "params", "MACs", *[title for name in extra for title in _titles(name)]]
        head += ["ms (median)", "IQR", "p95", "FPS", f"against {self.entries[0].name}"]
        rows = []
        for e in self.entries:
            main = e.counts["macs"] if e.counts else None
            row = [e.name, si(main.params) if main else "-", si(main.flops) if main else "-"]
            row += [cell for name in extra for cell in _figures(name, e.counts)]
            t = e.timing
            row += [f"{t.median_ms:.4g}", f"{t.iqr_ms:.2g}", f"{t.p95_ms:.4g}", f"{e.fps:.3g}", f"{e.speedup:.2f}x"]
            rows.append(row)
        rounds = self.entries[0].timing.rounds
        return table(
            head,
            rows,
            title=self.label,
            note=f"{rounds} rounds, the models in turns, {self.clock} time; ratios above 1 are faster",
        )


def _titles(convention: str) -> list[str]:
    return [f"{convention} Flops", f"{convention} MAdd"] if convention == "torchstat" else [convention]


def _figures(convention: str, counts: dict[str, Counts] | None) -> list[str]:
    if counts is None:
        return ["-"] * len(_titles(convention))
    one = counts[convention]
    return [si(one.flops)] + ([si(one.madd or 0)] if convention == "torchstat" else [])


def compare(
    models: Mapping[str, nn.Module],
    inputs: Any,
    *,
    conventions: Sequence[str] = (),
    budget_s: float = 10.0,
    min_rounds: int = 5,
    clock: str = "wall",
    on_round: Callable[[float], object] | None = None,
) -> Comparison:
    """Count and time models side by side on the same inputs, in eval mode and without gradients.

    The models take turns in one process, so that a busy machine slows all alike. They stay unchanged.

    Args:
        models: name -> model; the first is the base of every ratio.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        conventions: further counting conventions to print beside MACs ("torchstat").
        budget_s: seconds of timing over all models, without warm-up; at least `min_rounds` run.
        clock: "wall", or "cpu" for one thread's own computing time on a crowded machine (see `latency.interleave`).
    """
    if not models:
        raise BadInput("nothing to compare: no models were given")
    x = main_input(inputs)
    names = list(dict.fromkeys(["macs", *conventions]))
    counted = {name: _counts(model, inputs, names) for name, model in models.items()}
    with ExitStack() as stack:
        for model in {id(model): model for model in models.values()}.values():
            stack.enter_context(untouched(model))
        timings = interleave(
            {name: _call(model, inputs) for name, model in models.items()},
            budget_s=budget_s,
            min_rounds=min_rounds,
            clock=clock,
            on_round=on_round,
        )
    base = timings[next(iter(models))].median_ms
    batch = x.shape[0] if x.dim() else 1
    entries = tuple(
        Entry(name, counted[name], t, base / t.median_ms, 1e3 * batch / t.median_ms) for name, t in timings.items()
    )
    return Comparison(
        entries,
        describe(x.device),
        str(x.dtype).removeprefix("torch."),
        layout_of(x),
        tuple(x.shape),
        label(x.device, dtype=x.dtype, layout=layout_of(x), shape=x.shape),
        clock,
    )


def _call(model: nn.Module, inputs: Any) -> Callable[[], object]:
    return lambda: run(model, inputs)


def _counts(model: nn.Module, inputs: Any, names: Sequence[str]) -> dict[str, Counts] | None:
    """The counts in every convention; None where the model's work does not pass through torch."""
    recording = record(model, inputs)
    if not any(op.launches and op.name not in _COPIES for op in recording.ops):
        return None
    return {name: count_recorded(recording, name) for name in names}
