"""The comparison must be able to say no."""

import math

import pytest
import torch
from torch import nn

from leanconv.deploy.verify import difference, tolerance


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
    assert not difference(want, have).ok(0.05)


def test_special_numbers_are_equal_to_themselves():
    special = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert difference(special, special.clone()).ok(0)


def test_tolerance_follows_the_dtype_and_the_models_own_rounding():
    x = torch.randn(2, 3, 4, 4)
    conv = nn.Conv2d(3, 2, 1).requires_grad_(False)
    assert tolerance(conv, (x,), {}, conv(x)) == 1e-4
    assert tolerance(conv.double(), (x.double(),), {}, conv(x.double())) == 1e-9

    class Cancels(nn.Module):  # the rounding of 1e4 in float32 is most of what is left
        def forward(self, x):
            return (x + 1e4) - 1e4

    assert 1e-4 < tolerance(Cancels(), (x,), {}, Cancels()(x)) <= 5e-2
