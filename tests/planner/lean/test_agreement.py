"""Agreement of two networks' outputs, beside definitions written out."""

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.planner.lean.agreement import DICE, OUTPUT, TOP1, Agreement, main_output, measure_of


def value(measure, *batches):
    agreement = Agreement(measure)
    for dense, lean in batches:
        agreement.add(dense, lean)
    return agreement.value


def test_which_agreement():
    assert measure_of(torch.zeros(2, 10)) == TOP1
    assert measure_of(torch.zeros(2, 1)) == OUTPUT
    assert measure_of(torch.zeros(2, 1, 4, 4)) == DICE
    assert measure_of(torch.zeros(2, 5, 4)) == OUTPUT


def test_top1():
    dense = torch.eye(4)
    lean = torch.eye(4)[[0, 1, 3, 2]]
    assert value(TOP1, (dense, lean), (dense, dense)) == 6 / 8


@pytest.mark.parametrize("classes", [1, 3])
def test_dice_of_masks(classes):
    dense, lean = torch.randn(2, 2, classes, 5, 7)
    a, b = ((x > 0).long() if classes == 1 else x.argmax(1, keepdim=True) for x in (dense, lean))
    each = []
    for number in range(max(2, classes)):
        both, size = ((a == number) & (b == number)).sum(), (a == number).sum() + (b == number).sum()
        if size:
            each.append(float(2 * both / size))
    assert value(DICE, (dense[:1], lean[:1]), (dense[1:], lean[1:])) == pytest.approx(sum(each) / len(each))
    assert value(DICE, (dense, dense)) == 1


def test_plain_outputs():
    dense = torch.tensor([[3.0], [4.0]])
    assert value(OUTPUT, (dense, dense + torch.tensor([[0.0], [1.0]]))) == pytest.approx(1 - 1 / 5)
    assert value(OUTPUT, (dense, -9 * dense)) == 0
    assert value(OUTPUT, (0 * dense, 0 * dense)) == 1


def test_other_answers():
    with pytest.raises(BadInput, match="the dense one"):
        value(TOP1, (torch.zeros(2, 3), torch.zeros(2, 4)))
    assert main_output({"out": torch.ones(1, 2), "aux": None}).shape == (1, 2)
    with pytest.raises(BadInput, match="no tensor but str"):
        main_output("text")
