"""The report's summary in words: which run wins by which metric, by how much, and with which uncertainty."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanconv.report.summary import RunSummary
from leanconv.table import si


@dataclass(frozen=True)
class Metric:
    """One metric of the comparison: key, label, direction (`higher` is better) and number format."""

    key: str
    label: str
    higher: bool
    show: Callable[[float], str]
    score: bool = False
    title: str = ""


def _score(value: float) -> str:
    return f"{value:.3f}"


def _three(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


METRICS = (
    Metric("params", "Params", False, si, title="Learnable numbers of the model."),
    Metric("macs", "MACs", False, si, title="Multiply-accumulates of the convolutions for one image."),
    Metric("torchstat_flops", "Flops (torchstat)", False, si, title="What torchstat would print, as papers quote it."),
    Metric("torchstat_madd", "MAdd (torchstat)", False, si, title="What torchstat would print, as papers quote it."),
    Metric("fps", "Frames/s", True, _three, title="Images per second as PyTorch runs the model, measured here."),
    Metric("fast_fps", "Frames/s, optimised", True, _three, title="In the fastest form that optimize found here."),
    Metric("ms", "Latency, ms", False, _three, title="Median over interleaved rounds, as PyTorch runs the model."),
    Metric("fast_ms", "Latency, ms, optimised", False, _three, title="Median over the same rounds, optimised."),
    Metric(
        "image_dice",
        "Dice per image",
        True,
        _score,
        score=True,
        title="Dice of the defect (of several: their mean) in each image, the mean.",
    ),
    Metric(
        "image_iou",
        "IoU per image",
        True,
        _score,
        score=True,
        title="IoU of the defect (of several: their mean) in each image, the mean.",
    ),
    Metric(
        "dice",
        "Dice, all pixels",
        True,
        _score,
        score=True,
        title="Dice of the defect (of several: their mean) over all pixels.",
    ),
    Metric("top1", "Top-1", True, _score, score=True, title="Share of the images whose class got the largest logit."),
    Metric("top5", "Top-5", True, _score, score=True, title="Share whose class is among the five largest logits."),
    Metric(
        "iou",
        "IoU, all pixels",
        True,
        _score,
        score=True,
        title="IoU of the defect (of several: their mean) over all pixels.",
    ),
)
BY_KEY = {metric.key: metric for metric in METRICS}


def main_score(runs: Sequence[RunSummary]) -> tuple[str, str, str]:
    """Return the score that ranks the runs (classifiers: top-1), as key, word in a sentence, name on an axis."""
    if any(math.isfinite(run.value("top1")) for run in runs):
        return "top1", "top-1", "top-1"
    return "image_dice", "Dice", "Dice per image"


@dataclass(frozen=True)
class Card:
    """One of the boxes at the top: the title, the winning run, its value, and the next run."""

    title: str
    winner: str
    value: str
    detail: str


def cards(runs: Sequence[RunSummary]) -> list[Card]:
    """Return the winners in accuracy, speed, MACs and parameters. Metrics that no run has are skipped."""
    found = []
    score, word, _ = main_score(runs)
    speed = "fast_fps" if any(run.fast_ms > 0 for run in runs) else "fps"
    for title, key in (
        ("Most accurate", score),
        ("Fastest here" + ", optimised" * (speed != "fps"), speed),
        ("Fewest MACs", "macs"),
        ("Fewest parameters", "params"),
    ):
        metric = BY_KEY[key]
        known = ranked(runs, metric)
        if not known:
            continue
        best, value = known[0], known[0].value(key)
        tied = [
            run
            for run in known
            if metric.show(run.value(key)) == metric.show(value) or (key == speed and same_speed(best, run, speed))
        ]
        unit = {score: f"{word} {{}}", speed: "{} frames/s", "macs": "{}", "params": "{}"}[key].format(
            metric.show(value)
        )
        if len(tied) > 1:
            winner, detail = "a tie", ", ".join(run.name for run in tied)
        elif len(known) > 1:
            winner, detail = best.name, f"next: {known[1].name}, {metric.show(known[1].value(key))}"
        else:
            winner, detail = best.name, "the only run with this number"
        found.append(Card(title, winner, unit, detail))
    return found


def same_speed(one: RunSummary, two: RunSummary, key: str = "fps") -> bool:
    """Whether two latencies tie: they differ by at most 3 %, or by less than the 95 % noise of the timing.

    Two timings of one model differ by up to 3 % on a quiet machine. The standard error of a median of n normal values
    is 1.253·σ/√n, and σ is the interquartile range / 1.349. `key`: "fps" for plain PyTorch, "fast_fps" optimised.
    """
    fast = key == "fast_fps"
    times = [(run.fast_ms, run.fast_iqr_ms) if fast else (run.ms, run.iqr_ms) for run in (one, two)]
    errors = [
        0.93 * iqr / math.sqrt(run.rounds) if run.rounds and iqr >= 0 else 0.0
        for run, (_, iqr) in zip((one, two), times, strict=True)
    ]
    (first, _), (second, _) = times
    return abs(first - second) <= max(0.03 * min(first, second), 1.96 * math.hypot(*errors))


def ranked(runs: Sequence[RunSummary], metric: Metric) -> list[RunSummary]:
    """Return the runs that have this metric, best first."""
    known = [run for run in runs if math.isfinite(run.value(metric.key))]
    return sorted(known, key=lambda run: run.value(metric.key), reverse=metric.higher)


def sentences(runs: Sequence[RunSummary]) -> list[tuple[str, str]]:
    """Compare each later run with the first in words: (run name, text on MACs, speed and accuracy)."""
    return [(run.name, _sentence(runs[0], run)) for run in runs[1:]]


def _sentence(first: RunSummary, run: RunSummary) -> str:
    lean, keys = _ratio(first, run, "macs"), ("fps", "fast_fps")
    speeds = {key: ratio for key in keys if math.isfinite(ratio := _ratio(first, run, key))}
    needs = [
        f"{'as many' if abs(ratio - 1) < 5e-3 else _times(ratio, 'more', 'fewer')} {noun}"
        for noun, ratio in (("MACs", lean), ("parameters", _ratio(first, run, "params")))
        if math.isfinite(ratio)
    ]
    parts = [" and ".join(needs)] if needs else []
    for key, ratio in speeds.items():
        speed = "as fast" if same_speed(first, run, key) else _times(ratio, "faster", "slower")
        where = "here" if len(speeds) == 1 else "here in plain PyTorch" if key == "fps" else "optimised"
        parts.append(f"{speed} {where}")
    score = main_score([first, run])[0]
    gain = run.value(score) - first.value(score)
    if math.isfinite(gain):
        parts.append(_gain(first, run, gain))
    if not parts:
        return f"nothing could be compared with {first.name}."
    text = f"{', '.join(parts)}."
    last = next((key for key in reversed(keys) if key in speeds), "fps")
    if lean < 0.97 and speeds.get(last, 1.0) < 1 and not same_speed(first, run, last):
        text += " The saved arithmetic is not saved time on this device."
    return text


def _gain(first: RunSummary, run: RunSummary, gain: float) -> str:
    word = main_score([first, run])[1]
    if abs(gain) < 5e-4:
        return f"the same {word}"
    text = f"{word} {abs(gain):.3f} {'higher' if gain > 0 else 'lower'}"
    _, error, n = paired_difference(first, run)
    if n >= 5:
        chance = "more than" if abs(gain) > error else "within"
        text += f" (95 % interval ±{error:.3f} over {n} images: {chance} the chance of the test images)"
    return text


def paired_difference(first: RunSummary, run: RunSummary) -> tuple[float, float, int]:
    """Return (mean, 95 % half-width, n) of the differences in Dice over the images that both runs share.

    For classifiers, the differences are in hits, 0 or 1. The half-width is 1.96 standard errors. It covers the chance
    of the test images, but not of training with another seed. Only more runs can show that.
    """
    pairs = [(first.images[name], value) for name, value in run.images.items() if name in first.images]
    gaps = [b - a for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    if len(gaps) < 2:
        return math.nan, math.nan, len(gaps)
    return statistics.fmean(gaps), 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps)


def against(first: RunSummary, run: RunSummary, metric: Metric) -> str:
    """Return a cell's second line: the ratio to the first run, or for scores the difference."""
    ours, theirs = run.value(metric.key), first.value(metric.key)
    if run is first or not (math.isfinite(ours) and math.isfinite(theirs)):
        return ""
    if metric.score:
        return f"{ours - theirs:+.3f}".replace("-", "−")
    return f"{_three(ours / theirs)}×" if theirs else ""


def _ratio(first: RunSummary, run: RunSummary, key: str) -> float:
    ours, theirs = run.value(key), first.value(key)
    return ours / theirs if ours > 0 and theirs > 0 else math.nan


def _times(ratio: float, more: str, less: str) -> str:
    """Format a ratio as `4.9× fewer` or `1.3× faster`."""
    size = max(ratio, 1 / ratio)
    text = f"{size:.0f}" if size >= 10 else f"{size:.2g}" if size >= 1.1 else f"{size:.2f}"
    return f"{text}× {more if ratio >= 1 else less}"
