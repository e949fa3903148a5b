"""Report: the content of the page, as numbers and as a printed table."""

import math
from dataclasses import dataclass, field
from typing import Any

from leanconv.report.chance import best_speed, speed_ratio
from leanconv.report.overlays import Case
from leanconv.report.summary import RunSummary, comparability
from leanconv.report.verdict import Verdict, decide
from leanconv.report.words import BY_KEY, METRICS, Metric, against, ranked, sentences
from leanconv.table import table
from leanconv.text import one_line

# Columns of the page's table beside the model's name; all others are behind a switch.
COLUMNS = 5
_FIRST = ("dice", "image_dice", "recall", "top1", "top5", "macs", "params")


@dataclass
class Report:
    """A comparison of runs. `str()` is the comparison table, `to_dict()` the same numbers.

    Attributes:
        data, split, images: the data of the scores.
        measured: device and settings of the latency.
        image_size: height and width of the images that the speed is for.
        shape: of the batch that was timed; a large image is cut into `tiles` of it.
        others: share of the processors that other programs used during the timing, NaN if unknown.
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
    image_size: tuple[int, int] = (0, 0)
    shape: tuple[int, ...] = ()
    tiles: int = 1
    others: float = math.nan
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

    @property
    def columns(self) -> tuple[list[Metric], list[Metric]]:
        """The metrics that the page shows at once, and those behind a switch."""
        known = {metric.key for metric in self.metrics}
        first = [key for key in (best_speed(self.runs), *_FIRST) if key in known][:COLUMNS]
        return [BY_KEY[key] for key in first], [metric for metric in self.metrics if metric.key not in first]

    @property
    def verdict(self) -> Verdict:
        """Which model to take, how much faster it is, and what it misses."""
        return decide(self.runs, self.image_size if self.shape else None, self.measured)

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
                    "blocks_ms": list(run.blocks_ms),
                    "fast_blocks_ms": list(run.fast_blocks_ms),
                    "speed_ratio": self._speed_ratio(run),
                    "engine": run.engine or None,
                    "ratios": ratios,
                    "classes": run.classes,
                    "recipe": run.recipe,
                    "remarks": run.remarks,
                }
            )
        verdict = self.verdict
        return {
            "title": self.title,
            "verdict": {
                "headline": verdict.headline,
                "take": None if verdict.pick is None else self.runs[verdict.pick].name,
                **{what.lower(): list(lines) for what, lines in verdict.facts},
            },
            "data": self.data,
            "split": self.split,
            "images": self.images,
            "measured": self.measured,
            "image_size": list(self.image_size),
            "tiles": self.tiles,
            "others": _or_none(self.others),
            "runs": rows,
            "summary": [f"{name}: {text}" for name, text in sentences(self.runs)],
            "cases": [{"name": case.name, "group": case.group, "dice": case.dices} for case in self.cases],
            "remarks": [f"{who} {text}".strip() for who, text in self.all_remarks],
            "environment": self.environment,
        }

    def _speed_ratio(self, run: RunSummary) -> dict[str, float] | None:
        """How many times as fast as the first run, with the lowest and highest of the blocks."""
        found = None if run is self.runs[0] else speed_ratio(run, self.runs[0], best_speed([self.runs[0], run]))
        return found and {"value": found.value, "low": found.low, "high": found.high}

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
        verdict = self.verdict
        told = [verdict.headline, *(f"{what}: {' '.join(lines)}" for what, lines in verdict.facts)]
        shown = table(["", *(run.name for run in self.runs)], rows, note=[*measured, *lines])
        return "\n".join([*map(one_line, told), "", shown])


def _divide(a: float, b: float) -> float:
    return a / b if b else math.nan


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
