"""The verdict: the model that it names is the right one by the numbers, and each of its sentences is true of them."""

import math
import re

import numpy as np
import pytest

from leanconv.report.found import Found
from leanconv.report.summary import RunSummary
from leanconv.report.verdict import decide


def run(name, *, ms=10.0, dice=0.7, noise=0.0, images=60, macs=100.0, seed=0):
    """A run whose Dice differs from image to image, and by `noise` from that of the other runs."""
    random = np.random.default_rng(0)
    base = random.uniform(-0.2, 0.2, images) + noise * np.random.default_rng(seed + 1).normal(size=images)
    dices = (base - base.mean() + dice).tolist()
    return RunSummary(
        name,
        costs={"macs": macs, "params": macs},
        ms=ms,
        rounds=50,
        iqr_ms=0.01,
        blocks_ms=(ms * 0.98, ms, ms * 1.02),
        scores={"image_dice": dice, "dice": dice + 0.05},
        images={f"i{k}": value for k, value in enumerate(dices)},
    )


SIZE = "on images of 300×200 px"


def told(*runs, size=(200, 300)):
    return decide(runs, size, "AMD EPYC (AVX512), 1 thread, float32, batch 1")


def test_faster_at_no_clear_loss():
    found = told(run("dense"), run("lean", ms=4.0, dice=0.69, noise=0.05, seed=3))
    assert found.headline == f"Take lean: 2.5× as fast as dense {SIZE}, with no clear difference in Dice."
    assert (found.pick, found.cards) == (1, (0, 1))


def test_too_few_images_to_tell_are_called_so():
    found = told(run("dense", images=6), run("lean", images=6, ms=4.0, dice=0.6, noise=0.3, seed=3))
    assert found.headline.endswith("and 6 images show no difference in Dice.")


def test_faster_at_a_small_loss_that_is_no_chance():
    found = told(run("dense"), run("lean", ms=4.0, dice=0.692))
    assert found.headline.endswith("and Dice 0.008 lower.")
    assert found.pick == 1


def test_faster_at_a_large_loss_is_a_choice_and_is_said_so():
    found = told(run("dense"), run("lean", ms=4.0, dice=0.6))
    assert found.headline == (
        "Take dense for accuracy: Dice 0.100 higher. lean is 2.5× as fast on images of 300×200 px."
    )
    assert found.pick == 0


def test_the_leaner_model_loses_where_it_is_slower():
    found = told(run("dense"), run("lean", ms=14.0, macs=20, dice=0.65))
    assert found.headline.startswith("Take dense: 1.4× as fast as lean")
    assert "Dice 0.050 higher" in found.headline


def test_equal_in_both_the_one_with_fewer_macs_is_taken():
    found = told(run("dense"), run("lean", ms=10.1, macs=20))
    assert found.pick == 1
    assert found.headline == "Take lean: as fast as dense on images of 300×200 px, with the same Dice."


def test_of_many_the_fastest_of_the_accurate_ones_stands_beside_the_first():
    runs = [run("dense"), run("a", ms=2.0, dice=0.4), run("b", ms=3.0, dice=0.695), run("c", ms=5.0, dice=0.71)]
    found = told(*runs)
    assert found.pick == 3  # b is 0.015 below the best, and not by chance
    assert found.headline.startswith("Take c, of 4 models: 2× as fast as dense")
    assert found.cards == (0, 3)
    assert told(*runs[1:], runs[0]).cards == (0, 2)


def test_one_run_is_told_alone():
    found = told(run("lean", ms=4.0))
    assert found.headline == "lean: 250 frames/s on images of 300×200 px, Dice 0.750 over all pixels, 0.700 per image."
    assert (found.pick, found.cards) == (None, (0,))
    assert told(RunSummary("empty")).headline.startswith("Nothing of empty was measured")


def test_what_was_not_measured_decides_nothing():
    slow, fast = run("a"), run("b", ms=4.0)
    for each in (slow, fast):
        each.scores = {}
    assert told(slow, fast).headline == "b runs 2.5× as fast as a on images of 300×200 px. Accuracy was not compared."
    assert told(slow, fast).pick is None
    one, two = run("a", ms=math.nan), run("b", ms=math.nan, dice=0.6)
    assert told(one, two).headline == "Take a: Dice 0.100 higher than b. Speed was not measured."
    assert told(RunSummary("a"), RunSummary("b")).headline == "No model was measured: the remarks below say why."
    assert told(run("a"), RunSummary("b")).headline == "Only a was measured."
    assert told(run("a"), RunSummary("b")).cards == (0,)


def test_the_optimised_speed_is_the_one_that_counts():
    dense, lean = run("dense"), run("lean", ms=14.0, macs=20)
    dense.fast_ms, lean.fast_ms = 5.0, 2.0
    assert told(dense, lean).headline.startswith("Take lean: 2.5× as fast as dense")
    assert told(dense, lean).facts[0][1][-1] == "AMD EPYC (AVX512), 1 thread, optimised."


def test_facts_hold_both_dices_spread_machine_and_threads():
    dense, lean = run("dense"), run("lean", ms=4.0, dice=0.692)
    for each, hits in ((dense, 80), (lean, 60)):
        each.found = Found(tuple(each.images), np.array([[[870, 30], [100 - hits, hits]]] * 59 + [[[999, 1], [0, 0]]]))
    facts = dict(told(dense, lean).facts)
    assert facts["Speed"] == (
        "lean: 250 frames/s, 4 ms an image.",
        "dense: 100 frames/s, 10 ms an image.",
        "Ratio 2.5×; 3 blocks of timing gave 2.50 to 2.50×.",
        "AMD EPYC (AVX512), 1 thread, plain PyTorch.",
    )
    assert re.match(r"Dice over all pixels: lean 0\.742, dense 0\.750; difference −0\.008 \(95 %", facts["Accuracy"][0])
    assert "lean 0.692, dense 0.700; difference −0.008 (95 % interval" in facts["Accuracy"][1]
    assert facts["Misses"][0] == (
        "lean finds 60 % of the defect pixels; 67 % of what it marks is right. "
        "It finds nothing in 0 of 59 images with a defect. "
        "It marks a defect in 1 of 1 clean images."
    )


def test_classifiers_are_ranked_by_top1():
    runs = []
    for name, wrong, ms in (("dense", 20, 10.0), ("lean", 21, 4.0)):
        hits = {f"i{k}": float(k >= wrong) for k in range(100)}
        runs.append(RunSummary(name, ms=ms, scores={"top1": 1 - wrong / 100}, images=hits))
    found = told(*runs)
    assert found.headline == f"Take lean: 2.5× as fast as dense {SIZE}, with no clear difference in top-1."
    assert dict(found.facts)["Misses"][0] == "lean is wrong on 21 of 100 images."


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_sentence_is_short(count):
    runs = [run(f"m{k}", ms=10.0 - k, dice=0.7 - k / 50) for k in range(count)]
    found = told(*runs)
    lines = [found.headline, *(line for _, lines in found.facts for line in lines)]
    sentences = [each for line in lines for each in re.split(r"[.;:] ", line)]
    assert max(len(each.split()) for each in sentences) <= 20
