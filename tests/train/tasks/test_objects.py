"""Defects as objects: counted by hand, matched at most once, chosen so that fragments are not taken for defects."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.train.data.masks import IGNORE
from leanconv.train.data.samples import Sample
from leanconv.train.tasks import objects
from leanconv.train.tasks.components import components
from leanconv.train.tasks.decision import Rule
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.objects import best_rule, count_objects


def drawn(*boxes, size=(40, 60)):
    mask = np.zeros(size, np.uint8)
    for kind, y, x, h, w in boxes:
        mask[y : y + h, x : x + w] = kind
    return mask


def counted(predicted, truth, classes=2, merge=0, area=0):
    return count_objects(predicted, truth, classes, merge, (area,))[0, :, :5].tolist()


def test_by_hand():
    truth = drawn((1, 2, 2, 6, 6), (1, 20, 20, 4, 30), (1, 34, 2, 3, 3))
    predicted = drawn((1, 3, 3, 6, 6), (1, 20, 20, 4, 8), (1, 20, 32, 4, 16), (1, 2, 40, 2, 2))
    # the first is found, the scratch by one of its two fragments, the third is missed; one is nowhere
    assert counted(predicted, truth) == [[3, 4, 2, 36 + 120 + 9, 36 + 32 + 64 + 4]]
    assert counted(predicted, truth, merge=4) == [[3, 3, 2, 165, 136]]
    assert counted(predicted, truth, merge=4, area=5) == [[3, 2, 2, 165, 132]]
    assert counted(truth, truth) == [[3, 3, 3, 165, 165]]
    assert counted(0 * truth, truth) == [[3, 0, 0, 165, 0]]
    assert counted(truth, 0 * truth) == [[0, 3, 0, 0, 165]]
    assert counted(0 * truth, 0 * truth) == [[0, 0, 0, 0, 0]]


def test_one_report_of_many_defects_finds_one():
    truth = drawn((1, 2, 2, 8, 8), (1, 2, 12, 8, 8), (1, 2, 22, 8, 8))
    assert counted(drawn((1, 2, 2, 8, 28)), truth) == [[3, 1, 1, 192, 224]]


def test_merging_has_its_price():
    truth = drawn((1, 2, 2, 8, 8), (1, 2, 12, 8, 8), (1, 30, 2, 8, 8))
    assert counted(truth, truth) == [[3, 3, 3, 192, 192]]
    assert counted(truth, truth, merge=2) == [[3, 2, 2, 192, 192]], "the truth stays as it is drawn"
    assert count_objects(truth, truth, 2, 2, (0,))[0, 0, objects.TRUE_MERGED] == 2


def test_another_class_is_no_match():
    truth, predicted = drawn((1, 2, 2, 6, 6), (2, 20, 20, 6, 6)), drawn((2, 2, 2, 6, 6), (2, 20, 20, 6, 6))
    assert counted(predicted, truth, 3) == [[1, 0, 0, 36, 0], [1, 2, 1, 36, 72]]


def test_an_overlap_below_the_limit_is_none():
    truth = drawn((1, 0, 0, 10, 10))
    for w, matched in ((9, 0), (10, 1)):  # IoU .09 and .1
        assert counted(drawn((1, 0, 0, 1, w)), truth)[0][objects.MATCHED] == matched


def test_what_is_not_judged():
    truth = drawn((1, 2, 2, 6, 6))
    truth[:, 30:] = IGNORE
    predicted = drawn((1, 2, 2, 6, 6), (1, 10, 40, 5, 5), (1, 20, 28, 4, 20), (1, 30, 20, 4, 14))
    # within what is not judged, mostly there, mostly outside of it
    assert counted(predicted, truth) == [[1, 2, 1, 36, 36 + 56]]


def most(good, t, left):
    """The largest number of matches of the true defects from `t` on with those `left`, by trying all."""
    if t == len(good):
        return 0
    without = most(good, t + 1, left)
    return max([without, *(1 + most(good, t + 1, left - {o}) for o in left if good[t, o])])


def test_the_matching_is_a_largest_one():
    """Random fragments against every assignment of a few pairs."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        truth = (rng.random((9, 12)) < 0.35).astype(np.uint8)
        predicted = (rng.random((9, 12)) < 0.35).astype(np.uint8)
        (ours, many), (theirs, others) = ((labels, len(kinds)) for labels, kinds in map(components, (predicted, truth)))
        good = np.zeros((others, many), bool)
        for t, o in itertools.product(range(others), range(many)):
            a, b = theirs == t + 1, ours == o + 1
            good[t, o] = (a & b).sum() >= objects.MATCH_IOU * (a | b).sum()

        assert counted(predicted, truth)[0][objects.MATCHED] == most(good, 0, frozenset(range(many)))


class Red(nn.Module):
    """One logit: the red channel."""

    size_multiple = 1

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x[:, :1] * self.scale


class Set(list):
    classes = ("background", "defect")


def sample(truth, answer, name="x"):
    image = torch.from_numpy(answer * np.uint8(255))[None].repeat(3, 1, 1)
    return Sample(image, torch.from_numpy(truth), name)


def test_the_rule_is_chosen_so_that_fragments_and_specks_are_no_defects():
    truth = drawn((1, 10, 5, 3, 40))
    answer = drawn(*((1, 10, x, 3, 5) for x in range(5, 45, 8)), (1, 30, 3, 2, 2), (1, 35, 20, 1, 3))
    samples = Set([sample(truth, answer), sample(0 * truth, drawn((1, 4, 4, 2, 2)))])
    every = evaluate(Red(), samples, rule=Rule(0, 0))
    assert every.objects.sum(0).tolist()[0][:3] == [1, 8, 1]
    rule = best_rule(Red(), samples, Rule(), threshold=0.5)
    assert rule == Rule(6, 4)  # the gaps have 3 pixels, the specks 4; of equals the least
    told = evaluate(Red(), samples, rule=rule)
    assert told.objects.sum(0).tolist()[0][:3] == [1, 1, 1]
    assert told.to_dict()["objects"]["f1"] == 1
    assert told.iou == every.iou, "pixels are judged as they are"
    assert best_rule(Red(), samples, Rule(0, -1)) == Rule(0, 16), "which makes one of two specks"
    assert best_rule(Red(), samples, Rule(9, -1)) == Rule(9, 4)
    assert best_rule(Red(), samples, Rule(3, 3)) == Rule(3, 3)


def test_with_nothing_to_find_nothing_is_left_out():
    samples = Set([sample(0 * drawn(), 0 * drawn())])
    assert best_rule(Red(), samples, Rule()) == Rule(0, 0)
    assert evaluate(Red(), samples, rule=Rule()).to_dict()["objects"]["f1"] == 1


def test_verdicts_on_pictures():
    good, bad = 0 * drawn(), drawn((1, 5, 5, 6, 6))
    pairs = [(bad, bad), (bad, good), (good, bad), (good, good), (good, good)]
    samples = Set([sample(*pair) for pair in pairs])
    scores = evaluate(Red(), samples, rule=Rule(0, 0))
    assert scores.verdicts == {"pictures": 5, "found": 1, "missed": 1, "false_alarms": 1, "passed": 2}
    assert "Of 2 pictures that must fail 1 do; of 3 that must pass 2 do." in str(scores)
    tolerant = evaluate(Red(), samples, rule=Rule(0, 0, max_area=36)).verdicts
    assert (tolerant["passed"], tolerant["found"]) == (5, 0)
    apart = drawn((1, 5, 5, 6, 6), (1, 5, 13, 6, 6))
    one = evaluate(Red(), Set([sample(apart, apart)]), rule=Rule(0, 2, max_defects=1))
    assert one.verdicts["passed"] == 1, "by one rule both are one defect"
    listed = scores.to_dict(per_image=True)["per_image"]
    assert [(one["true"], one["reported"], one["matched"]) for one in listed] == [
        (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 0), (0, 0, 0),
    ]  # fmt: skip
    assert "objects" not in evaluate(Red(), samples).to_dict()


def test_shares_of_the_processes_add_up():
    samples = Set([sample(drawn((1, 5, 5, 6, 6)), drawn((1, 5, 5, 6, 6 - i))) for i in range(5)])
    whole = evaluate(Red(), samples, rule=Rule(0, 0)).objects
    parts = [evaluate(Red(), samples, rule=Rule(0, 0), rank=rank, processes=2).objects for rank in (0, 1)]
    assert torch.equal(sum(parts), whole)


def test_a_class_nobody_has(tmp_path):
    counts = count_objects(drawn((2, 1, 1, 4, 4)), drawn((2, 1, 1, 4, 4)), 4, 2, (0, 5, 500))
    assert counts.shape == (3, 3, 6)
    assert counts[:, 1, :3].tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    assert not counts[:, [0, 2]].any()


def test_missing_scipy_says_what_to_install(monkeypatch):
    import sys

    from leanconv.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtra, match=r"leanconv\[train\]"):
        components(drawn((1, 1, 1, 2, 2)))
