"""The metrics of a comparison, how each is written, and each later run against the first in a sentence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanconv.report.chance import paired_difference, same_speed
from leanconv.report.summary import RunSummary
from leanconv.table import si


@dataclass(frozen=True)
class Metric:
    """One metric of the comparison: key, label, direction (`higher` is better), number format and explanation."""

    key: str
    label: str
    higher: bool
    show: Callable[[float], str]
    score: bool = False
    title: str = ""


def _score(value: float) -> str:
    return f"{value:.3f}"


def three(value: float) -> str:
    """Three digits: `4.56`, `123`, `4568`."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share in percent: `26 %`."""
    return f"{100 * value:.0f} %"


_OF = "Of several defect classes: their mean."
METRICS = (
    Metric("fast_fps", "Frames/s, optimised", True, three, title="Images per second in the fastest form found here."),
    Metric("dice", "Dice, all pixels", True, _score, True, f"2·hits / (marked + true) over all pixels at once. {_OF}"),
    Metric("image_dice", "Dice per image", True, _score, True, f"Dice of each image, then the mean over images. {_OF}"),
    Metric("recall", "Recall", True, percent, True, "Share of the defect pixels that were found with their class."),
    Metric("top1", "Top-1", True, _score, True, "Share of the images whose class got the largest logit."),
    Metric("top5", "Top-5", True, _score, True, "Share whose class is among the five largest logits."),
    Metric("macs", "MACs", False, si, title="Multiply-accumulates of the convolutions for one image."),
    Metric(
        "precision", "Precision", True, percent, True, "Share of the marked pixels that are a defect of that class."
    ),
    Metric("object_recall", "Recall, defects", True, percent, True, "Share of the separate defects that were found."),
    Metric("object_precision", "Precision, defects", True, percent, True, "Share of the marks that are a defect."),
    Metric("params", "Params", False, si, title="Learnable numbers of the model."),
    Metric("fps", "Frames/s", True, three, title="Images per second in plain PyTorch, without optimize."),
    Metric("ms", "Latency, ms", False, three, title="Median time of one image in plain PyTorch."),
    Metric("fast_ms", "Latency, ms, optimised", False, three, title="Median time of one image, optimised."),
    Metric("iou", "IoU, all pixels", True, _score, True, f"hits / (marked or true) over all pixels at once. {_OF}"),
    Metric("image_iou", "IoU per image", True, _score, True, f"IoU of each image, then the mean over images. {_OF}"),
    Metric("torchstat_flops", "Flops (torchstat)", False, si, title="What torchstat would print, as papers quote it."),
    Metric("torchstat_madd", "MAdd (torchstat)", False, si, title="What torchstat would print, as papers quote it."),
)
BY_KEY = {metric.key: metric for metric in METRICS}


def main_score(runs: Sequence[RunSummary]) -> tuple[str, str, str]:
    """Return the score that ranks the runs (classifiers: top-1), as key, word in a sentence, name on an axis."""
    if any(math.isfinite(run.value("top1")) for run in runs):
        return "top1", "top-1", "top-1"
    if not any(math.isfinite(run.value("image_dice")) for run in runs) and any(
        math.isfinite(run.value("dice")) for run in runs
    ):
        return "dice", "Dice", "Dice over all pixels"
    return "image_dice", "Dice", "Dice per image"


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


def against(first: RunSummary, run: RunSummary, metric: Metric) -> str:
    """Return a cell's second line: the ratio to the first run, or for scores the difference."""
    ours, theirs = run.value(metric.key), first.value(metric.key)
    if run is first or not (math.isfinite(ours) and math.isfinite(theirs)):
        return ""
    if metric.score:
        return signed(ours - theirs) if metric.show is _score else f"{signed(100 * (ours - theirs), 0)} points"
    return f"{three(ours / theirs)}×" if theirs else ""


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign: `+0.012`, `−0.012`."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text.lstrip("+−") if not float(text.replace("−", "-")) else text


def times(ratio: float) -> str:
    """A ratio of speeds: `2.1×`, `0.45×`, `13×`."""
    return f"{ratio:.0f}×" if ratio >= 10 else f"{ratio:.2f}×" if ratio < 1.1 else f"{ratio:.2g}×"


def _ratio(first: RunSummary, run: RunSummary, key: str) -> float:
    ours, theirs = run.value(key), first.value(key)
    return ours / theirs if ours > 0 and theirs > 0 else math.nan


def _times(ratio: float, more: str, less: str) -> str:
    """Format a ratio as `4.9× fewer` or `1.3× faster`."""
    return f"{times(max(ratio, 1 / ratio))} {more if ratio >= 1 else less}"
