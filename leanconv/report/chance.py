"""How much of a difference may be chance: of the test images for scores, of the machine's load for speed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from leanconv.report.found import dice_of
from leanconv.report.summary import RunSummary

RESAMPLES = 500
AGREE = 5  # blocks that all name one winner: by chance once in 16 times


class Interval(NamedTuple):
    """A value with its lowest and highest plausible ones; `n` samples."""

    value: float
    low: float
    high: float
    n: int


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


def pixel_difference(first: RunSummary, run: RunSummary) -> Interval | None:
    """The difference in Dice over all pixels, with the 95 % interval of a bootstrap over the images.

    Both models are scored on the same resampled images. None unless both were scored on the same images here.
    """
    ours, theirs = run.found, first.found
    if ours is None or theirs is None or ours.names != theirs.names or len(ours.names) < 5:
        return None
    if ours.counts.shape != theirs.counts.shape:
        return None
    random, n = np.random.default_rng(0), len(ours.names)
    gaps = []
    for _ in range(RESAMPLES):
        times = np.bincount(random.integers(0, n, n), minlength=n)
        mine, other = (dice_of(np.tensordot(times, each.counts, 1)) for each in (ours, theirs))
        gaps.append(float(mine - other))
    low, high = np.quantile(gaps, [0.025, 0.975])
    exact = float(dice_of(ours.counts.sum(0)) - dice_of(theirs.counts.sum(0)))
    return Interval(exact, float(low), float(high), n)


def best_speed(runs: Sequence[RunSummary]) -> str:
    """The key of the speed that compares these runs: optimised if all of the timed ones have it, else plain PyTorch."""
    timed = [run for run in runs if run.ms > 0 or run.fast_ms > 0]
    return "fast_fps" if timed and all(run.fast_ms > 0 for run in timed) else "fps"


def times_of(run: RunSummary, key: str) -> tuple[float, float, tuple[float, ...]]:
    """Median latency, interquartile range and block medians in ms. `key`: "fps" for plain PyTorch, "fast_fps"."""
    if key == "fast_fps":
        return run.fast_ms, run.fast_iqr_ms, run.fast_blocks_ms
    return run.ms, run.iqr_ms, run.blocks_ms


def speed_ratio(run: RunSummary, other: RunSummary, key: str) -> Interval | None:
    """How many times as fast `run` is as `other`: the ratio, and its lowest and highest over the blocks of timing."""
    (ours, _, mine), (theirs, _, their_blocks) = times_of(run, key), times_of(other, key)
    if not (ours > 0 and theirs > 0):
        return None
    blocks = [b / a for a, b in zip(mine, their_blocks, strict=False) if a > 0]
    ratio = theirs / ours
    return Interval(ratio, min([ratio, *blocks]), max([ratio, *blocks]), len(blocks))


def same_speed(one: RunSummary, two: RunSummary, key: str = "fps") -> bool:
    """Whether two latencies tie: by 3 %, as the blocks disagree on the winner, or by the 95 % noise of the medians.

    Two timings of one model differ by up to 3 % on a quiet machine. The models run in turns: where `AGREE` blocks name
    one winner, a noise that is larger than the difference was the same for both. The standard error of a median of n
    normal values is 1.253·σ/√n, and σ is the interquartile range / 1.349. `key`: "fps" for plain PyTorch, "fast_fps"
    optimised.
    """
    (first, first_iqr, _), (second, second_iqr, _) = times_of(one, key), times_of(two, key)
    if abs(first - second) <= 0.03 * min(first, second):
        return True
    ratio = speed_ratio(one, two, key)
    if ratio is not None and ratio.n > 1:
        if ratio.low <= 1 <= ratio.high:
            return True
        if ratio.n >= AGREE:
            return False
    errors = [
        0.93 * iqr / math.sqrt(run.rounds) if run.rounds and iqr >= 0 else 0.0
        for run, iqr in ((one, first_iqr), (two, second_iqr))
    ]
    return abs(first - second) <= 1.96 * math.hypot(*errors)


def spread(blocks: tuple[float, ...]) -> float:
    """The highest block median less the lowest, as a share of the median; 0 for fewer than two blocks."""
    return (max(blocks) - min(blocks)) / statistics.median(blocks) if len(blocks) > 1 and min(blocks) > 0 else 0.0


def half_width(images: Mapping[str, float]) -> float:
    """Half the 95 % interval of the mean over images, 1.96 standard errors; 0 for fewer than five."""
    values = [value for value in images.values() if math.isfinite(value)]
    return 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) >= 5 else 0.0
