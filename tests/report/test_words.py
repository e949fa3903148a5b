"""The sentences on top must be true of the numbers below."""

import math

import numpy as np

from leanconv.report.summary import RunSummary
from leanconv.report.words import BY_KEY, against, cards, paired_difference, ranked, same_speed, sentences


def run(name, macs=100.0, ms=10.0, dice=0.7, params=1000.0, images=None):
    return RunSummary(
        name, costs={"macs": macs, "params": params}, ms=ms, scores={"image_dice": dice}, images=images or {}
    )


def test_cards_name_the_winners():
    found = {card.title: card for card in cards([run("dense"), run("lean", macs=20, params=200, ms=14, dice=0.65)])}
    assert found["Most accurate"].winner == found["Fastest here"].winner == "dense"
    assert found["Fewest MACs"].winner == found["Fewest parameters"].winner == "lean"
    assert found["Fastest here"].value == "100 frames/s"
    assert found["Fastest here"].detail == "next: lean, 71.4"


def test_a_tie_and_a_missing_number_are_said():
    one, two = run("a"), run("b", dice=0.70001)
    two.ms = math.nan
    found = {card.title: card for card in cards([one, two])}
    assert found["Most accurate"].winner == "a tie"
    assert found["Fastest here"].detail == "the only run with this number"
    assert "Fewest MACs" not in {card.title for card in cards([RunSummary("empty")])}


def test_saved_arithmetic_that_saves_no_time_is_said_plainly():
    ((name, text),) = sentences([run("dense"), run("lean", macs=20, params=210, ms=14, dice=0.65)])
    assert name == "lean"
    assert text == (
        "5× fewer MACs and 4.8× fewer parameters, 1.4× slower here, Dice 0.050 lower. "
        "The saved arithmetic is not saved time on this device."
    )


def test_where_models_were_optimised_that_speed_stands_beside_the_plain_one_and_decides():
    dense, lean = run("dense"), run("lean", macs=20, params=210, ms=14, dice=0.7)
    for each, ms in ((dense, 5.0), (lean, 2.0)):
        each.fast_ms, each.fast_iqr_ms, each.engine = ms, 0.1, "fused"
    ((_, text),) = sentences([dense, lean])
    assert text == (
        "5× fewer MACs and 4.8× fewer parameters, 1.4× slower here in plain PyTorch, 2.5× faster optimised, "
        "the same Dice."
    )
    card = next(card for card in cards([dense, lean]) if card.title == "Fastest here, optimised")
    assert (card.winner, card.value, card.detail) == ("lean", "500 frames/s", "next: dense, 200")
    lean.fast_ms = 5.1
    assert next(c for c in cards([dense, lean]) if c.title == "Fastest here, optimised").winner == "a tie"
    lean.fast_ms = 6.0
    assert sentences([dense, lean])[0][1].endswith("The saved arithmetic is not saved time on this device.")


def test_equal_is_equal():
    ((_, text),) = sentences([run("a"), run("b", ms=10.1)])
    assert text == "as many MACs and as many parameters, as fast here, the same Dice."


def test_a_difference_within_the_noise_of_the_timing_is_none():
    one, two = run("a"), run("b", ms=11.0)
    assert not same_speed(one, two)
    for each in (one, two):
        each.iqr_ms, each.rounds = 6.0, 100  # standard error of each median: 0.56 ms
    assert same_speed(one, two)
    assert "as fast here" in sentences([one, two])[0][1]
    assert {card.title: card.winner for card in cards([one, two])}["Fastest here"] == "a tie"
    for each in (one, two):
        each.rounds = 10_000
    assert not same_speed(one, two)


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


def test_ratios_for_costs_and_differences_for_scores():
    first, lean = run("dense"), run("lean", macs=20, dice=0.65)
    assert against(first, lean, BY_KEY["macs"]) == "0.2×"
    assert against(first, lean, BY_KEY["image_dice"]) == "−0.050"
    assert against(first, first, BY_KEY["macs"]) == ""
    assert [each.name for each in ranked([first, lean], BY_KEY["fps"])] == ["dense", "lean"]
