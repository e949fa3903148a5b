"""The HTML page of a report: one offline file, all texts escaped, no script but its own."""

import base64
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanconv.extras import needs
from leanconv.files import origin
from leanconv.report.cards import cards, notes
from leanconv.report.chance import half_width, same_speed
from leanconv.report.confusion import matrix
from leanconv.report.document import Report
from leanconv.report.overlays import css_colours
from leanconv.report.plots import SERIES, Curve, Point, curves, frontier
from leanconv.report.summary import RunSummary, recipe_differences
from leanconv.report.words import Metric, against, main_score, ranked
from leanconv.table import si
from leanconv.text import printable

_HERE = Path(__file__).parent
# A transparent pixel. CSS puts the photo behind each tile, so that it is embedded only once.
_BLANK = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
# Plots from history.csv: title, y axis, (column, dashed) pairs.
_CURVES: tuple[tuple[str, str, tuple[tuple[str, bool], ...]], ...] = (
    ("Training loss", "loss", (("loss", False), ("val_loss", True))),
    ("Validation Dice, all pixels", "Dice", (("dice", False),)),
    ("Validation top-1", "top-1", (("top1", False),)),
)

# Speeds and latencies tie by the noise of their timing.
_SPEED = {"fps": "fps", "ms": "fps", "fast_fps": "fast_fps", "fast_ms": "fast_fps"}
# What stands beside a class's bar, if it is known: key, words.
_OF_A_CLASS = (("dice", "Dice"), ("precision", "precision"), ("recall", "recall"))


def render(report: Report) -> str:
    """Render the whole page with styles, script, drawings and pictures. All texts are escaped and printable."""
    with needs("jinja2", "report"):
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    page = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("page.html")
    script = (_HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    filled = page.render(
        _words(report)
        | {
            "css": Markup((_HERE / "page.css").read_text(encoding="utf-8")),
            "script": Markup(script),
            # The browser runs our script only. A name that escaped the escaping could still do nothing.
            "script_hash": f"sha256-{digest}",
            "frontier": Markup(_frontier(report)),
            "narrow": Markup(_frontier(report, narrow=True)),
            "matrices": [(run.name, index, Markup(svg)) for index, run, svg in _matrices(report)],
            "curves": [(title, Markup(svg)) for title, svg in _curves(report)],
        }
    )
    return printable(filled)


def _words(report: Report) -> dict[str, Any]:
    differing, same = recipe_differences(report.runs)
    scored = [index for index, run in enumerate(report.runs) if run.scores]
    first, more = report.columns
    return {
        "title": report.title,
        "subtitle": _subtitle(report),
        "origin": origin(),
        "command": report.command,
        "series": SERIES,
        "runs": [{"name": run.name, "index": index} for index, run in enumerate(report.runs)],
        "scored": [{"name": report.runs[i].name, "index": i} for i in scored],
        "blank": _BLANK,
        "verdict": report.verdict,
        "cards": cards(report),
        "remarks": report.all_remarks,
        "metrics": first,
        "more": more,
        "rows": [_row(report, run, [*first, *more]) for run in report.runs],
        "table_note": _table_note(report),
        "measured": report.measured and f"{report.measured}." + _marks(report),
        "notes": notes(report),
        "cases": report.cases,
        "colours": css_colours(report.classes),
        "cases_note": _cases_note(report),
        "classes": _classes(report, scored),
        "classes_note": _classes_note(report),
        "differing": differing if len(report.runs) > 1 else {},
        "same": same,
        "environment": report.environment,
    }


def _marks(report: Report) -> str:
    return " Filled: optimised; hollow: plain PyTorch." if any(run.engine for run in report.runs) else ""


def _subtitle(report: Report) -> str:
    return f"{report.images} images of the {report.split} split of {report.data}" if report.images else ""


def _table_note(report: Report) -> str:
    if len(report.runs) < 2:
        return report.measured
    return (
        f"Small: against {report.runs[0].name}, a ratio, or a difference for scores. Green and bold: best of the "
        f"column. {report.measured}"
    )


def _cases_note(report: Report) -> str:
    return (
        f"{len(report.cases)} of {report.images} images, by the mean Dice of all models. The number below a picture is "
        "its Dice. A click enlarges."
    )


def _row(report: Report, run: RunSummary, metrics: Sequence[Metric]) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        value, known = run.value(metric.key), ranked(report.runs, metric)
        shown = metric.show(value) if math.isfinite(value) else "–"
        best = len(known) > 1 and _best(metric, run, known)
        cells.append(
            {"label": metric.label, "value": shown, "against": against(report.runs[0], run, metric), "best": best}
        )
    return {"name": run.name, "model": run.model, "cells": cells}


def _best(metric: Metric, run: RunSummary, known: Sequence[RunSummary]) -> bool:
    """Whether a run's number is the best of its column, or as good; never if all are. `known`: best first."""
    first, last, speed = known[0], known[-1], _SPEED.get(metric.key)
    if speed:
        return same_speed(run, first, speed) and not same_speed(first, last, speed)
    shown, best, worst = (metric.show(each.value(metric.key)) for each in (run, first, last))
    return shown == best != worst


def _classes(report: Report, scored: Sequence[int]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for index in scored for name in report.runs[index].classes))
    rows = []
    for name in names:
        cells: list[dict[str, Any] | None] = []
        for index in scored:
            found = report.runs[index].classes.get(name, {})
            bar = found.get("accuracy", found.get("iou"))
            if bar is None:
                cells.append(None)
                continue
            more = [f"{words} {found[key]:.3f}" for key, words in _OF_A_CLASS if key in found]
            cells.append({"bar": bar, "more": more, "run": index})
        rows.append({"name": name, "cells": cells})
    return rows


def _matrices(report: Report) -> list[tuple[int, RunSummary, str]]:
    """Draw the confusion matrix of every run that has one."""
    return [
        (index, run, matrix(run.name, list(run.classes), run.confusion))
        for index, run in enumerate(report.runs)
        if run.confusion
    ]


def _classes_note(report: Report) -> str:
    if any("top1" in run.scores for run in report.runs):
        return "Share of each class's images that the model classified correctly."
    return "Over all pixels of the split. Each cell: IoU (the bar), then Dice."


def _frontier(report: Report, *, narrow: bool = False) -> str:
    """Draw accuracy against latency, once for wide screens and once, smaller with the same letters, for phones."""
    key, _, axis = main_score(report.runs)
    most = max((run.value("macs") for run in report.runs if run.value("macs") > 0), default=math.nan)
    points = [
        _point(run, index, score, axis, most)
        for index, run in enumerate(report.runs)
        if math.isfinite(run.ms) and math.isfinite(score := run.value(key))
    ]
    if not points:
        return ""
    label = f"Scatter plot of {axis} against latency: " + "; ".join(point.tip for point in points)
    return frontier("plot-narrow" if narrow else "plot-frontier", label, points, y_label=axis, narrow=narrow)


def _point(run: RunSummary, index: int, score: float, axis: str, most: float) -> Point:
    """Return a run's mark: the optimised latency if there is one, with plain PyTorch's beside it."""
    fast, macs = math.isfinite(run.fast_ms), run.value("macs")
    ms, iqr_ms, fps = (run.fast_ms, run.fast_iqr_ms, run.fast_fps) if fast else (run.ms, run.iqr_ms, run.fps)
    tip = (
        f"{run.name}{', optimised' * fast}: {ms:.3g} ms, {fps:.3g} frames/s, {axis} {score:.3f}, "
        f"{si(macs) if macs > 0 else 'unknown'} MACs"
    )
    size = macs / most if macs > 0 else 0.3
    half = half_width(run.images) if axis != "Dice over all pixels" else 0.0
    return Point(run.name, index, ms, iqr_ms, score, size, tip, run.ms if fast else math.nan, half)


def _curves(report: Report) -> list[tuple[str, str]]:
    drawn = []
    for number, (title, y_label, columns) in enumerate(_CURVES):
        lines = []
        for index, run in enumerate(report.runs):
            steps = run.history.get("epoch") or run.history.get("step") or []
            for column, dashed in columns:
                pairs = [(x, y) for x, y in zip(steps, run.history.get(column, [])) if math.isfinite(x + y)]
                if pairs:
                    lines.append(
                        Curve(f"{run.name} {column}", index, [x for x, _ in pairs], [y for _, y in pairs], dashed)
                    )
        if lines:
            over = "epoch" if all(run.history.get("epoch") for run in report.runs if run.history) else "step"
            label = f"{title} over {over}s: " + "; ".join(
                f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines
            )
            drawn.append((title, curves(f"plot-curve-{number}", label, lines, x_label=over, y_label=y_label)))
    return drawn
