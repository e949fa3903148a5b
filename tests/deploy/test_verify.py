"""The comparison must be able to say no."""

import math

import pytest
import torch
from torch import nn

from leanconv.deploy.verify import InFloat64, Reference, difference


def test_errors_are_shares_of_the_largest_output():
    want = torch.tensor([10.0, 0.0])
    assert difference(want, torch.tensor([10.0, 0.001])).relative == pytest.approx(1e-4)
    assert difference({"a": want}, {"a": want.clone()}).absolute == 0


@pytest.mark.parametrize(
    ("want", "have"),
    [
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2).double()),
        (torch.zeros(2), (torch.zeros(2),)),
        ((torch.zeros(2), 3), (torch.zeros(2), 4)),
        (torch.zeros(2), torch.tensor([0.0, math.nan])),
        (torch.tensor([math.inf, 1]), torch.tensor([-math.inf, 1])),
        (torch.zeros(2), torch.tensor([0.0, 1e-9])),
        (torch.arange(100), torch.arange(100) + 1),
    ],
)
def test_what_is_not_the_same(want, have):
    assert not difference(want, have, 0.05).passes


def test_special_numbers_are_equal_to_themselves():
    special = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert difference(special, special.clone()).passes


class Cancels(nn.Module):  # the rounding of 1e4 in float32 is most of what is left
    def forward(self, x):
        return (x + 1e4) - 1e4


def allowed(model, x, wrong, dtype=None):
    """What a form that is off by the share `wrong` of the answer would have been allowed."""
    answer = model(x)
    return Reference(InFloat64(model), (x,), {}, answer).error(answer * (1 + wrong), dtype).allowed


def test_what_is_allowed_follows_the_dtype_and_the_models_own_rounding():
    x = torch.randn(2, 3, 4, 4)
    conv = nn.Conv2d(3, 2, 1).requires_grad_(False)
    assert allowed(conv, x, 1e-3) == pytest.approx(1e-4)
    assert allowed(conv, x, 1e-1, torch.bfloat16) == pytest.approx(5e-2)
    assert allowed(conv.double(), x.double(), 1e-3) == pytest.approx(1e-9)
    assert 1e-4 < allowed(Cancels(), x, 0.5) <= 5e-2
