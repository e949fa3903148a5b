"""The page's cards of the two models that the verdict compares, and its notes: what each number means."""

import math
from collections.abc import Sequence
from typing import Any

from leanconv.report.chance import best_speed, spread, times_of
from leanconv.report.document import Report
from leanconv.report.speed import BLOCKS
from leanconv.report.summary import RunSummary
from leanconv.report.words import BY_KEY, against, percent
from leanconv.table import si
from leanconv.train.tasks.objects import MATCH_IOU

_FIGURES = ("dice", "image_dice", "top1", "top5")


def cards(report: Report) -> list[dict[str, Any]]:
    """The cards: name, model, whether to take it, its large figures, and lines on size and speed."""
    verdict = report.verdict
    shown = [report.runs[index] for index in verdict.cards if index < len(report.runs)]
    return [
        {
            "index": index,
            "name": run.name,
            "model": run.model,
            "take": index == verdict.pick,
            "figures": _figures(shown, run),
            "lines": [line for line in (_size(run), _speed(report, run)) if line],
        }
        for index, run in zip(verdict.cards, shown, strict=False)
        if any(math.isfinite(run.value(key)) for key in BY_KEY)
    ]


def _figures(shown: Sequence[RunSummary], run: RunSummary) -> list[dict[str, str]]:
    """Speed, scores and what is found; below each the comparison with the other card's run."""
    keys = [key for key in (best_speed(shown), *_FIGURES, "recall") if math.isfinite(run.value(key))]
    other = next((each for each in shown if each is not run), run)
    figures = []
    for key in keys[:4]:
        metric = BY_KEY[key]
        label = "Frames/s" if key == "fast_fps" else metric.label
        figures.append({"label": label, "value": metric.show(run.value(key)), "against": against(other, run, metric)})
    return figures


def _size(run: RunSummary) -> str:
    parts = [
        f"{si(run.value(key))} {word}"
        for key, word in (("macs", "MACs"), ("params", "parameters"))
        if run.value(key) > 0
    ]
    return " · ".join(parts)


def _speed(report: Report, run: RunSummary) -> str:
    """Latency with its spread, the engine, and the device: every number with its unit, machine and threads."""
    key = best_speed(report.runs)
    ms, _, blocks = times_of(run, key)
    if not ms > 0:
        return ""
    how = f"engine {run.engine}" if key == "fast_fps" else "plain PyTorch"
    where = ", ".join(report.measured.split(", ")[:2])
    varies = f" (blocks differ by {percent(spread(blocks))})" if len(blocks) > 1 else ""
    return f"{ms:.3g} ms an image{varies}, {how}; {where}"


def notes(report: Report) -> dict[str, dict[str, str]]:
    """The notes that the page's question marks open: key -> title and text."""
    found = {metric.key: {"title": metric.label, "text": metric.title} for metric in report.metrics if metric.title}
    told = {what for what, _ in report.verdict.facts}
    if "Speed" in told and report.measured:
        found["speed"] = {"title": "Speed", "text": _speed_note(report)}
    if "Accuracy" in told:
        text = "An image without a defect counts as 1 if none is predicted. " * ("image_dice" in found)
        if len(report.runs) > 1:
            text += "An interval covers the chance of the test images. It does not cover training with another seed."
        if text:
            found["accuracy"] = {"title": "Accuracy", "text": text}
    if report.shape:
        size = "×".join(map(str, report.shape[1:]))
        tiles = f", times {report.tiles} tiles" if report.tiles > 1 else ""
        for key in ("macs", "torchstat_flops", "torchstat_madd"):
            if key in found:
                found[key]["text"] += f" Counted on one {size} input{tiles}."
    if report.cases:
        found["images"] = {
            "title": "Images",
            "text": "A defect is a connected patch of the mask. It is found if the model reports one of its class, by "
            f"the run's own rule, whose overlap with it (IoU) is at least {percent(MATCH_IOU)}. A report without such "
            "a partner is a false alarm.",
        }
    if any(math.isfinite(run.ms) and run.scores for run in report.runs):
        found["frontier"] = {
            "title": "Accuracy against latency",
            "text": "The grey steps join the models that no other beats in both. The larger a mark, the more MACs. "
            "Bars: the interquartile range of the latency, and the 95 % interval of the score.",
        }
    return found


def _speed_note(report: Report) -> str:
    height, width = report.image_size
    rounds = max(run.rounds for run in report.runs)
    cut = f", cut into {report.tiles} tiles" if report.tiles > 1 else ""
    if tuple(report.shape[2:]) != (height, width) and not cut:
        cut = f", padded to {report.shape[3]}×{report.shape[2]} px"
    parts = [
        f"For an image of {width}×{height} px{cut}.",
        f"Measured on {report.measured}.",
        f"Median of {rounds} rounds in {BLOCKS} blocks; in each round every model runs once, in random order.",
    ]
    if any(run.engine for run in report.runs):
        parts.append("Optimised: the fastest form with the same answers that leanconv.optimize found here.")
    if math.isfinite(report.others):
        parts.append(f"Other programs used {percent(report.others)} of the processors meanwhile.")
    return " ".join(parts)
