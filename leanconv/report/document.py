"""Report: the content of the page, as numbers and as a printed table."""

import math
from dataclasses import dataclass, field
from typing import Any

from leanconv.report.overlays import Case
from leanconv.report.summary import RunSummary, comparability
from leanconv.report.words import METRICS, Metric, against, ranked, sentences
from leanconv.table import table


@dataclass
class Report:
    """A comparison of runs. `str()` is the comparison table, `to_dict()` the same numbers.

    Attributes:
        data, split, images: the data of the scores.
        measured: device and settings of the latency.
        classes: class names, the background first.
        cases: the pictures.
        remarks: remarks on the whole report.
        optimised: run name -> result of `optimize`, if it ran.
    """

    runs: list[RunSummary]
    title: str = "Comparison of training runs"
    data: str = ""
    split: str = "test"
    images: int = 0
    measured: str = ""
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    cases: list[Case] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    optimised: dict[str, Any] = field(default_factory=dict)

    @property
    def all_remarks(self) -> list[tuple[str, str]]:
        """Caveats on the numbers, as (run name or "", text)."""
        whole = [("", text) for text in [*self.remarks, *comparability(self.runs)]]
        return whole + [(run.name, text) for run in self.runs for text in run.remarks]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics of the comparison: those that at least one run has."""
        return [metric for metric in METRICS if ranked(self.runs, metric)]

    def to_dict(self) -> dict[str, Any]:
        first = self.runs[0]
        rows = []
        for run in self.runs:
            values = {metric.key: _or_none(run.value(metric.key)) for metric in METRICS}
            ratios = {m.key: _or_none(_divide(run.value(m.key), first.value(m.key))) for m in METRICS}
            rows.append(
                {
                    "name": run.name,
                    "path": str(run.path),
                    "model": run.model,
                    **values,
                    "p95_ms": _or_none(run.p95_ms),
                    "iqr_ms": _or_none(run.iqr_ms),
                    "engine": run.engine or None,
                    "ratios": ratios,
                    "classes": run.classes,
                    "recipe": run.recipe,
                    "remarks": run.remarks,
                }
            )
        return {
            "title": self.title,
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "measured": self.measured,
            "runs": rows,
            "summary": [f"{name}: {text}" for name, text in sentences(self.runs)],
            "cases": [{"name": case.name, "why": case.why, "dice": case.dices} for case in self.cases],
            "remarks": [f"{who} {text}".strip() for who, text in self.all_remarks],
            "environment": self.environment,
        }

    def __str__(self) -> str:
        rows = []
        for metric in self.metrics:
            row = [metric.label]
            for run in self.runs:
                value, ratio = run.value(metric.key), against(self.runs[0], run, metric)
                row.append((metric.show(value) if math.isfinite(value) else "-") + (f" ({ratio})" if ratio else ""))
            rows.append(row)
        lines = [
            *(f"{name} against {self.runs[0].name}: {text}" for name, text in sentences(self.runs)),
            *(f"note: {who} {text}".replace("  ", " ") for who, text in self.all_remarks),
        ]
        measured = [f"Latency: {self.measured}"] if self.measured else []
        return table(["", *(run.name for run in self.runs)], rows, note=[*measured, *lines])


def _divide(a: float, b: float) -> float:
    return a / b if b else math.nan


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
