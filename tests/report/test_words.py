"""The sentences on top must be true of the numbers below."""

from leanconv.report.chance import same_speed
from leanconv.report.summary import RunSummary
from leanconv.report.words import BY_KEY, against, ranked, sentences, signed, times


def run(name, macs=100.0, ms=10.0, dice=0.7, params=1000.0, images=None):
    return RunSummary(
        name, costs={"macs": macs, "params": params}, ms=ms, scores={"image_dice": dice}, images=images or {}
    )


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
    for each in (one, two):
        each.rounds = 10_000
    assert not same_speed(one, two)


def test_ratios_for_costs_and_differences_for_scores():
    first, lean = run("dense"), run("lean", macs=20, dice=0.65)
    assert against(first, lean, BY_KEY["macs"]) == "0.2×"
    assert against(first, lean, BY_KEY["image_dice"]) == "−0.050"
    assert against(first, first, BY_KEY["macs"]) == ""
    assert [each.name for each in ranked([first, lean], BY_KEY["fps"])] == ["dense", "lean"]


def test_how_numbers_are_written():
    assert [signed(x) for x in (0.0123, -0.0123, 0.0, -0.0001)] == ["+0.012", "−0.012", "0.000", "0.000"]
    assert [times(x) for x in (2.14, 13.2, 1.04, 0.45)] == ["2.1×", "13×", "1.04×", "0.45×"]
