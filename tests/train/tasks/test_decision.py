"""From logits to classes, from defects to a verdict, and how a user's words change both."""

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.decision import Decision, Rule, classes_and_scores, predicted_classes

CLASSES = ("background", "scratch", "pit")


def logits_of(*shares):
    """`1 K 1 N` logits of the probabilities of N pixels."""
    return torch.tensor(shares).log().T[None, :, None]


def test_a_pixels_class_depends_on_its_own_threshold():
    logits = logits_of((0.6, 0.3, 0.1), (0.3, 0.3, 0.4), (0.2, 0.5, 0.3), (0.1, 0.45, 0.45))
    told = {
        None: [0, 2, 1, 1],
        0.35: [0, 2, 1, 1],
        0.5: [0, 0, 1, 0],
        (0.25, 0.9): [1, 0, 1, 1],
        (0.9, 0.25): [0, 2, 0, 0],
    }
    for threshold, expected in told.items():
        assert predicted_classes(logits, threshold)[0, 0].tolist() == expected, threshold
    with pytest.raises(BadInput, match="3 thresholds for 2 classes"):
        predicted_classes(logits, (0.1, 0.2, 0.3))


def test_two_logits_at_a_half_are_the_largest():
    logits = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    assert torch.equal(predicted_classes(logits, 0.5), logits.argmax(1))
    assert torch.equal(predicted_classes(logits[:, 1:], None), (logits[:, 1] >= 0).long())


def test_not_a_number_is_no_defect():
    logits = torch.full((1, 3, 2, 2), float("nan"))
    assert predicted_classes(logits, 0.5).sum() == 0
    assert predicted_classes(logits[:, :1], None).sum() == 0


def test_the_score_is_the_probability_of_the_pixels_own_class():
    logits = logits_of((0.6, 0.3, 0.1), (0.3, 0.3, 0.4), (0.2, 0.5, 0.3))
    for threshold in (None, 0.35):
        classes, scores = classes_and_scores(logits, threshold)
        assert classes[0].tolist() == [[0, 2, 1]]
        torch.testing.assert_close(scores[0], torch.tensor([[0.0, 0.4, 0.5]]))
    torch.testing.assert_close(
        classes_and_scores(torch.tensor([[[[-1.0, 0.0, 2.0]]]]), None)[1], torch.tensor([[[0.0, 0.5, 0.880797]]])
    )


def test_scores_are_those_of_softmax_class_by_class():
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    for threshold in (None, 0.3, (0.2, 0.3, 0.4, 0.1)):
        classes, scores = classes_and_scores(logits, threshold)
        assert torch.equal(classes, predicted_classes(logits, threshold))
        own = logits.softmax(1).gather(1, classes[:, None])[:, 0]
        assert torch.equal(scores, torch.where(classes > 0, own, 0.0))


@pytest.mark.parametrize(
    ("rule", "found", "why"),
    [
        ({}, [], ""),
        ({}, [("pit", 1, 3)], "1 defect"),
        ({}, [("pit", 2, 3), ("scratch", 1, 1)], "3 defects"),
        ({"max_defects": 2}, [("pit", 2, 900)], ""),
        ({"max_defects": 2}, [("pit", 2, 9), ("scratch", 1, 1)], "3 defects, at most 2 pass"),
        ({"max_area": 10}, [("pit", 5, 10)], ""),
        ({"max_area": 10}, [("pit", 5, 10), ("scratch", 1, 1)], "11 px, at most 10 pass"),
        ({"fail_classes": ("scratch",)}, [("pit", 5, 10)], ""),
        ({"fail_classes": ("scratch",)}, [("pit", 5, 10), ("scratch", 2, 1)], "scratch: 2"),
        ({"fail_classes": ("pit",), "max_defects": 0}, [("pit", 1, 1)], "pit: 1; 1 defect, at most 0 pass"),
        ({"max_area": 0}, [], ""),
    ],
)
def test_verdicts(rule, found, why):
    assert Rule(**rule).why_fail(found) == why


def test_the_recipes_rule():
    recipe = Recipe(steps=1, min_area=7, max_area=30, fail_classes=("pit",))
    assert Rule.of(recipe, CLASSES) == Rule(7, -1, -1, 30, ("pit",))
    assert Rule.of(recipe, CLASSES).chosen(3, 4) == Rule(7, 4, -1, 30, ("pit",))
    with pytest.raises(BadInput, match="fail_classes has 'pit': one of scratch"):
        Rule.of(recipe, CLASSES[:2])
    with pytest.raises(BadInput, match="fail_classes has 'background'"):
        Rule.of(Recipe(steps=1, fail_classes=("background",)), CLASSES)


def test_what_a_user_asks_for_goes_before():
    kept = Decision(CLASSES, (0.3, 0.6), Rule(5, 2, max_area=9))
    assert kept.asked(None, None, None) == kept
    assert kept.asked(0.2, 0, 4) == Decision(CLASSES, 0.2, Rule(0, 4, max_area=9))
    assert kept.asked("pit=0.4", None, None).thresholds == {"scratch": 0.3, "pit": 0.4}
    assert kept.asked(" pit = 0.4 , scratch=.9", None, None).thresholds == {"scratch": 0.9, "pit": 0.4}
    assert Decision(CLASSES).asked("pit=0.4", None, None).threshold == (0.5, 0.4)
    assert Decision().asked("defect=0.4", None, None).threshold == 0.4
    for text, says in [
        ("bump=0.4", "'bump' is no class: one of scratch, pit"),
        ("pit=2", "threshold of pit=2: a number between 0 and 1"),
        ("nan", "threshold=nan: a number between 0 and 1"),
        ("0", "threshold=0"),
        ("", "threshold="),
    ]:
        with pytest.raises(BadInput, match=says):
            kept.asked(text, None, None)
    with pytest.raises(BadInput, match="min_area=-1: pixels, at least 0"):
        kept.asked(None, -1, None)


def test_names_and_what_is_stored():
    assert Decision(CLASSES, (0.3, 0.6), Rule(5, 2)).to_dict() == {
        "threshold": None, "thresholds": {"scratch": 0.3, "pit": 0.6}, "min_area": 5, "merge": 2,
    }  # fmt: skip
    assert Decision(("ok", "bad"), 0.3).to_dict()["threshold"] == 0.3
    assert Decision(CLASSES).to_dict()["thresholds"] == {}
    assert [Decision(CLASSES).name(k) for k in (1, 2, 3)] == ["scratch", "pit", "class3"]
    assert [Decision().name(k) for k in (1, 2)] == ["defect", "class2"]
