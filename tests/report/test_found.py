"""What is found and missed, counted by hand in pixels, images and separate defects."""

import math

import numpy as np
import pytest

from leanconv.report.found import DefectCount, Found, count_defects, dice_of, names_of
from leanconv.train.tasks.decision import Rule


def picture(*rows: str) -> np.ndarray:
    return np.array([[int(each) for each in row.replace(".", "0").replace("x", "9")] for row in rows], np.uint8)


def test_pixels_and_images_by_hand():
    counts = np.array(
        [[[90, 2], [4, 4]], [[99, 1], [0, 0]], [[100, 0], [0, 0]], [[95, 0], [5, 0]]]  # hit, alarm, clean, missed
    )
    found = Found(("a", "b", "c", "d"), counts)
    assert found.pixels == pytest.approx(4 / 13)
    assert found.precision == pytest.approx(4 / 7)
    assert (found.with_defect, found.without_a_hit) == (2, 1)
    assert (found.clean, found.false_alarms) == (2, 1)
    assert found.defective == {"a", "d"}
    assert math.isnan(Found(("c",), counts[2:3]).pixels)


def test_a_hit_of_another_class_is_none():
    found = Found(("a",), np.array([[[9, 0, 0], [0, 0, 5], [0, 0, 0]]]))
    assert found.pixels == 0
    assert found.without_a_hit == 1


def test_dice_of_counts_is_the_definition():
    assert dice_of(np.array([[90, 2], [4, 6]])) == pytest.approx(2 * 6 / (8 + 10))
    assert dice_of(np.array([[90, 0], [0, 0]])) == 1
    several = np.array([[90, 1, 0], [3, 6, 0], [0, 0, 0]])  # the third class is neither there nor marked
    assert dice_of(several) == pytest.approx(12 / (7 + 9))


def test_defects_are_counted_as_patches():
    truth = picture("11..1..", "11..1..", ".......", "....111")
    guess = picture("1......", ".......", "1......", "....1..")
    assert count_defects(guess, truth) == DefectCount(total=3, found=2, false=1)
    guess[1, 0] = 1  # now the mark below the first defect hangs together with the one on it
    assert count_defects(guess, truth) == DefectCount(total=3, found=2, false=0)
    everything = np.ones((20, 20), np.uint8)  # is one mark, and no defect fills a tenth of it
    assert count_defects(everything, np.pad(truth, 10)[:20, :20]) == DefectCount(3, 0, 1)


def test_defects_are_counted_by_the_runs_rule():
    truth, guess = picture("1111....", "........"), picture("11.1...1", "........")
    assert count_defects(guess, truth) == DefectCount(total=1, found=1, false=2)
    assert count_defects(guess, truth, Rule(merge=2)) == DefectCount(total=1, found=1, false=1)
    assert count_defects(guess, truth, Rule(merge=2, min_area=2)) == DefectCount(total=1, found=1, false=0)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (DefectCount(4, 3, 0), "3 found, 1 missed"),
        (DefectCount(4, 3, 1), "3 found, 1 missed, 1 false alarm"),
        (DefectCount(0, 0, 2), "2 false alarms"),
        (DefectCount(0, 0, 0), "no defect, none marked"),
    ],
)
def test_counts_in_words(count, words):
    assert str(count) == words


def test_what_is_not_judged_counts_nowhere():
    truth, guess = picture("1.x", "1.."), picture("1.1", "1..")
    truth[truth == 9] = 255
    assert count_defects(guess, truth) == DefectCount(1, 1, 0)
    assert count_defects(truth * 0, truth * 0) == DefectCount(0, 0, 0)


def test_names_of_the_classes_in_a_mask():
    assert names_of(("background", "pit"), picture("12.")) == "pit, class 2"
    assert names_of(("background", "pit"), picture("...")) == "no defect"
