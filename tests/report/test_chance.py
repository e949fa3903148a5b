"""Chance: intervals against their definition, ties in speed, and the spread of the blocks of timing."""

import math

import numpy as np
import pytest

from leanconv.report.chance import (
    best_speed,
    half_width,
    paired_difference,
    pixel_difference,
    same_speed,
    speed_ratio,
    spread,
)
from leanconv.report.found import Found, dice_of
from leanconv.report.summary import RunSummary
from leanconv.report.words import sentences


def run(name, ms=10.0, dice=0.7, images=None, **more):
    return RunSummary(name, ms=ms, scores={"image_dice": dice}, images=images or {}, **more)


def test_standard_error_of_a_median_by_experiment():
    rng = np.random.default_rng(0)
    draws = rng.normal(10, 1, (4000, 101))
    iqr = float(np.subtract(*np.quantile(draws, [0.75, 0.25])))
    assert math.isclose(0.93 * iqr / math.sqrt(101), float(np.median(draws, axis=1).std()), rel_tol=0.05)


def test_chance_is_the_paired_standard_error():
    rng = np.random.default_rng(0)
    a = rng.uniform(0.2, 0.9, 50)
    b = a - 0.05 + rng.normal(0, 0.1, 50)
    one = run("a", images=dict(enumerate(a.tolist())), dice=a.mean())
    two = run("b", images=dict(enumerate(b.tolist())), dice=b.mean())
    mean, half, n = paired_difference(one, two)
    assert n == 50
    assert math.isclose(mean, (b - a).mean())
    assert math.isclose(half, 1.96 * (b - a).std(ddof=1) / 50**0.5)
    assert "more than the chance" in sentences([one, two])[0][1]
    two.images = {k: v + (0.04 if k % 2 else 0.05) for k, v in two.images.items()}
    two.scores["image_dice"] = float(np.mean(list(two.images.values())))
    assert "within the chance" in sentences([one, two])[0][1]


def pixels(seed: int, images: int = 40, share: float = 0.7) -> Found:
    """Images of 100 defect and 900 clean pixels; `share` of the former is found, 30 others are marked."""
    random = np.random.default_rng(seed)
    hits = random.binomial(100, share, images)
    counts = np.stack([[[870, 30], [100 - hit, hit]] for hit in hits.tolist()])
    return Found(tuple(map(str, range(images))), counts)


def test_the_interval_of_dice_over_all_pixels_holds_the_exact_difference():
    one, two = run("a", found=pixels(0)), run("b", found=pixels(1, share=0.6))
    found = pixel_difference(one, two)
    dices = [2 * c[:, 1, 1].sum() / (c[:, :, 1].sum() + c[:, 1].sum()) for c in (one.found.counts, two.found.counts)]
    assert found.value == pytest.approx(dices[1] - dices[0])
    assert found.low < found.value < found.high < 0
    # Images drawn anew differ as much as the bootstrap says.
    drawn = [
        float(dice_of(pixels(s, share=0.6).counts.sum(0)) - dice_of(pixels(s + 500).counts.sum(0))) for s in range(200)
    ]
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(drawn), rel=0.4)


def test_without_the_same_images_there_is_no_interval():
    assert pixel_difference(run("a", found=pixels(0)), run("b")) is None
    assert pixel_difference(run("a", found=pixels(0)), run("b", found=pixels(0, images=39))) is None
    assert pixel_difference(run("a", found=pixels(0, images=4)), run("b", found=pixels(1, images=4))) is None


def test_the_ratio_of_two_speeds_comes_with_its_range():
    slow, fast = run("a", ms=10.0, blocks_ms=(9.0, 10.0, 12.0)), run("b", ms=5.0, blocks_ms=(5.0, 5.0, 4.0))
    assert speed_ratio(fast, slow, "fps") == (2.0, 1.8, 3.0, 3)
    assert speed_ratio(fast, run("c", ms=math.nan), "fps") is None
    assert spread(slow.blocks_ms) == pytest.approx(0.3)
    assert spread(()) == spread((4.0,)) == 0.0


def test_blocks_that_disagree_on_the_winner_are_a_tie():
    one, two = run("a", ms=10.0, blocks_ms=(9.0, 10.0, 12.0)), run("b", ms=8.0, blocks_ms=(10.0, 8.0, 7.0))
    assert same_speed(one, two)
    two.blocks_ms = (8.5, 8.0, 7.0)
    assert not same_speed(one, two)


def test_optimised_speed_counts_only_if_all_timed_runs_have_it():
    one, two = run("a", fast_ms=3.0), run("b")
    assert best_speed([one]) == "fast_fps"
    assert best_speed([one, two]) == "fps"
    assert best_speed([one, run("c", ms=math.nan)]) == "fast_fps"


def test_half_width_is_of_the_mean():
    assert half_width({"a": 1.0, "b": 0.0}) == 0.0
    values = np.random.default_rng(0).uniform(size=100)
    expected = 1.96 * values.std(ddof=1) / 10
    assert half_width(dict(enumerate(values.tolist()))) == pytest.approx(expected)


def test_blocks_that_all_name_one_winner_decide_on_a_busy_machine():
    noise = {"rounds": 20, "iqr_ms": 20.0}
    slow = run("a", ms=10.0, blocks_ms=(30.0, 12.0, 10.0, 9.0, 40.0), **noise)
    fast = run("b", ms=6.0, blocks_ms=(8.0, 6.0, 6.0, 5.0, 6.5), **noise)
    assert not same_speed(slow, fast)
    slow.blocks_ms, fast.blocks_ms = slow.blocks_ms[:4], fast.blocks_ms[:4]  # too few to tell
    assert same_speed(slow, fast)
