"""Defects of an image: boxes, areas and scores by hand; small ones left out of the lists, not of the mask."""

import numpy as np
import pytest
import torch

from leanconv.train.inference.defects import find_defects, judge
from leanconv.train.tasks.decision import Decision, Rule

CLASSES = ("background", "scratch", "pit")


def test_by_hand():
    mask = np.zeros((8, 12), np.uint8)
    mask[1:3, 2:5], mask[1, 7:9], mask[6, 0] = 1, 1, 2
    score = np.arange(96, dtype=np.float32).reshape(8, 12) / 96
    found = find_defects(mask, score)
    assert [(d.box, d.area_px, d.class_index) for d in found] == [
        ((2, 1, 5, 3), 6, 1), ((7, 1, 9, 2), 2, 1), ((0, 6, 1, 7), 1, 2),
    ]  # fmt: skip
    assert [d.score for d in found] == pytest.approx([float(score[1:3, 2:5].mean()), 19.5 / 96, 72 / 96])
    assert [d.box for d in find_defects(mask, score, merge=2)] == [(2, 1, 9, 3), (0, 6, 1, 7)]
    assert [d.area_px for d in find_defects(mask, score, min_area=2)] == [6, 2]
    assert [d.area_px for d in find_defects(mask, score, merge=2, min_area=7)] == [8]
    assert find_defects(np.zeros((5, 5), bool), np.zeros((5, 5))) == []
    assert find_defects(np.ones((1, 1), bool), np.full((1, 1), 0.25))[0].score == 0.25


def logits_of(*patches, size=(20, 30), classes=3):
    """Logits whose pixels in each patch have the probability `p` of a class, and elsewhere hardly any."""
    shares = torch.full((classes, *size), 0.01)
    for kind, p, y, x, h, w in patches:
        shares[kind, y : y + h, x : x + w] = p
    shares[0] = 1 - shares[1:].sum(0)
    return shares.log()


def test_one_picture():
    logits = logits_of((1, 0.8, 2, 2, 3, 10), (2, 0.7, 12, 4, 1, 2), (2, 0.6, 15, 20, 3, 3))
    decision = Decision(CLASSES, (0.75, 0.5), Rule(min_area=3, merge=0, fail_classes=("pit",)))
    mask, shown, found = judge("a/b.png", logits, decision)
    assert [(d.class_name, d.area_px, round(d.score, 4)) for d in found.defects] == [
        ("scratch", 30, 0.8),
        ("pit", 9, 0.6),
    ]
    assert int((mask > 0).sum()) == 41, "the mask has the pixels of the small one"
    assert int((shown > 0).sum()) == found.area_px == 39
    assert found.to_dict() | {"defects": 0} == {
        "image": "a/b.png", "width": 30, "height": 20, "threshold": None,
        "thresholds": {"scratch": 0.75, "pit": 0.5}, "verdict": "fail", "why": "pit: 1", "defect_area_px": 39,
        "defects": 0,
    }  # fmt: skip
    assert found.defects[0].to_dict()["class"] == "scratch"
    passing = judge("x", logits, decision.asked("pit=0.65", None, None))[2]
    assert (passing.verdict, passing.why, len(passing.defects)) == ("pass", "", 1)


def test_of_one_logit_and_of_a_network_without_names():
    logits = torch.full((1, 4, 4), -4.0)
    logits[0, 1, 1:3] = 1.0
    found = judge("x", logits, Decision())[2].to_dict()
    assert (found["threshold"], found["thresholds"], found["why"]) == (0.5, {"defect": 0.5}, "1 defect")
    assert found["defects"][0]["class"] == "defect"
    found = judge("x", logits_of((2, 0.9, 1, 1, 2, 2)), Decision())[2].to_dict()
    assert (found["threshold"], found["thresholds"]) == (None, {})
    asked = Decision().asked(0.4, None, None)
    assert judge("x", logits_of(), asked)[2].thresholds == {"class1": 0.4, "class2": 0.4}
    assert found["defects"][0] | {"score": 0} == {
        "box": [1, 1, 3, 3], "area_px": 4, "score": 0, "class": "class2", "class_index": 2,
    }  # fmt: skip


def test_nothing_found():
    mask, shown, found = judge("x", logits_of(), Decision(CLASSES, 0.5, Rule(5, 4)))
    assert not mask.any()
    assert not shown.any()
    assert (found.verdict, found.defects) == ("pass", ())
