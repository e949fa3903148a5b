"""profile(): a model's parameters, MACs, bytes and milliseconds, layer by layer."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from leanconv.measure.counting.count import Counts, Layer, count_recorded
from leanconv.measure.counting.record import Recording, record
from leanconv.measure.device import describe, label
from leanconv.measure.hardware.roofline import Peaks, peaks
from leanconv.measure.state import bare, countable, layout_of, main_input
from leanconv.measure.timing.latency import Timing, interleave, synchronize
from leanconv.running import run, untouched
from leanconv.table import si, table

_WARMUP = 2


@dataclass(frozen=True)
class LayerProfile:
    """One row: a layer's counts (see `count.Layer`), its time, and its roofline floor, a perfect kernel's time.

    `timing` is None for a layer that did not run; `bound` is "compute" or "memory".
    """

    layer: Layer
    timing: Timing | None
    floor_ms: float
    bound: str


@dataclass(frozen=True)
class Profile:
    """Rows and totals of one model on one input. `timing`: of the whole model, without the layers' hooks.

    `counts` holds the totals in every convention asked for; its first is "macs", which the rows show.
    """

    rows: tuple[LayerProfile, ...]
    timing: Timing
    counts: dict[str, Counts]
    peaks: Peaks
    floor_ms: float
    device: dict[str, Any]
    dtype: str
    layout: str
    shape: tuple[int, ...]
    label: str

    @property
    def params(self) -> int:
        return self.counts["macs"].params

    @property
    def macs(self) -> int:
        return self.counts["macs"].flops

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "layout": self.layout,
            "shape": list(self.shape),
            "batch": self.shape[0] if self.shape else 0,
            "peaks": self.peaks.to_dict(),
            "layers": [
                {
                    **asdict(r.layer),
                    "macs": r.layer.flops,
                    "ms": r.timing.to_dict() if r.timing else None,
                    "floor_ms": r.floor_ms,
                    "bound": r.bound,
                }
                for r in self.rows
            ],
            "total": {
                "params": self.params,
                "macs": self.macs,
                "bytes": self.counts["macs"].bytes,
                "launches": self.counts["macs"].launches,
                "ms": self.timing.to_dict(),
                "floor_ms": self.floor_ms,
            },
            "conventions": {
                name: {"unit": c.unit, "params": c.params, "flops": c.flops, "madd": c.madd, "uncounted": c.uncounted}
                for name, c in self.counts.items()
            },
        }

    def __str__(self) -> str:
        head = [
            "layer",
            "type",
            "output",
            "params",
            "MACs",
            "bytes",
            "kernels",
            "p50 ms",
            "p95 ms",
            "floor ms",
            "bound",
        ]
        # Hides identities and other layers without a kernel; to_dict() has them.
        rows: list[Sequence[object]] = [_cells(r) for r in self.rows if r.layer.launches or r.layer.params]
        total = self.counts["macs"]
        rows.append(
            [
                "total",
                "",
                "",
                si(total.params),
                si(total.flops),
                si(total.bytes),
                total.launches,
                f"{self.timing.median_ms:.3g}",
                f"{self.timing.p95_ms:.3g}",
                f"{self.floor_ms:.3g}",
                "",
            ]
        )
        notes = [f"{self.peaks}; {self.timing.rounds} rounds; the total is timed without the layers' clocks"]
        notes += [_convention_line(counts) for name, counts in self.counts.items() if name != "macs"]
        notes += [counts.note() for counts in self.counts.values() if counts.uncounted]
        return table(head, rows, title=self.label, note=notes)


def _cells(row: LayerProfile) -> list[object]:
    layer, timing = row.layer, row.timing
    times = [f"{timing.median_ms:.3g}", f"{timing.p95_ms:.3g}"] if timing else ["-", "-"]
    return [
        layer.name,
        layer.type,
        "x".join(map(str, layer.shape)),
        si(layer.params),
        si(layer.flops),
        si(layer.bytes),
        layer.launches,
        *times,
        f"{row.floor_ms:.2g}",
        row.bound if layer.launches else "",
    ]


def _convention_line(counts: Counts) -> str:
    madd = f", {counts.madd:,} MAdd" if counts.madd is not None else ""
    return f"{counts.convention}: {counts.params:,} params, {counts.flops:,} {counts.unit}{madd}"


def profile(
    model: nn.Module,
    inputs: Any,
    *,
    conventions: Sequence[str] = (),
    budget_s: float = 5.0,
    on_round: Callable[[float], object] | None = None,
) -> Profile:
    """Count and time every layer of `model` on `inputs`, in eval mode and without gradients.

    A row is a leaf module, an operator, or a container's own work between its layers. The model stays unchanged.

    Args:
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
        conventions: further counting conventions whose totals to print (see `conventions.CONVENTIONS`).
        budget_s: seconds of timing, without warm-up.
        on_round: called after every round with the fraction that is done.
    """
    given, model, x = model, bare(model), main_input(inputs)
    whole_only = countable(model) is not model  # an optimised model runs as a whole, without layers to time
    recording = record(model, inputs)
    counts = {name: count_recorded(recording, name) for name in dict.fromkeys(["macs", *conventions])}
    top = peaks(x.device, x.dtype)
    with untouched(model):
        clock = _Clock(recording, model)
        candidates: dict[str, Callable[[], object]] = {"model": lambda: run(given, inputs)}
        if not whole_only:
            candidates["layers"] = lambda: clock.run(inputs)
        whole = interleave(candidates, budget_s=budget_s, warmup=_WARMUP, on_round=on_round)["model"]
    rows = []
    for layer in counts["macs"].layers:
        # A layer without a kernel (Identity, Flatten) moves no bytes.
        floor, bound = top.floor_ms(layer.flops, layer.min_bytes) if layer.launches else (0.0, "memory")
        rows.append(LayerProfile(layer, clock.timing(layer.name), floor, bound))
    return Profile(
        tuple(rows),
        whole,
        counts,
        top,
        sum(row.floor_ms for row in rows),
        describe(x.device),
        str(x.dtype).removeprefix("torch."),
        layout_of(x),
        tuple(x.shape),
        label(x.device, dtype=x.dtype, layout=layout_of(x), shape=x.shape),
    )


class _Clock:
    """Times rows by hooks around modules; a container's own time is its total minus its layers'."""

    def __init__(self, recording: Recording, model: nn.Module) -> None:
        self.model, self.row_of = model, recording.row_of()
        self.running: list[list[float]] = []
        self.rounds: list[dict[str, float]] = []

    def run(self, inputs: Any) -> None:
        self.rounds.append(defaultdict(float))
        self.running.clear()
        with self._hooks():
            run(self.model, inputs)

    def timing(self, name: str) -> Timing | None:
        """The timing of the row of that name; None if it never ran."""
        times = [times[name] * 1e3 for times in self.rounds[_WARMUP:] if name in times]
        return Timing.of(times) if times else None

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        for name, module in self.model.named_modules():
            if self.row_of.get(name) == name and not (isinstance(module, torch.jit.ScriptModule) and name):
                handles.append(module.register_forward_pre_hook(self._start, prepend=True))
                handles.append(module.register_forward_hook(self._stop(name or "(model)")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _start(self, module: nn.Module, args: Any) -> None:
        synchronize()
        self.running.append([time.perf_counter(), 0.0])

    def _stop(self, name: str) -> Any:
        def stop(module: nn.Module, args: Any, out: Any) -> None:
            synchronize()
            start, inner = self.running.pop()
            took = time.perf_counter() - start
            self.rounds[-1][name] += took - inner
            if self.running:
                self.running[-1][1] += took

        return stop
