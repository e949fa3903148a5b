"""Squeeze-and-excitation: the closed form, its count, its degenerate case."""

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.nn import SqueezeExcite


def test_zero_second_map_halves():
    layer = SqueezeExcite(8)
    torch.nn.init.zeros_(layer.up.weight)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(layer(x), x / 2)


def test_count_of_the_specification():
    assert sum(p.numel() for p in SqueezeExcite(128, 8).parameters()) == 4096 + 144


@pytest.mark.parametrize("gate", ["sigmoid", "hardsigmoid"])
def test_equals_the_formula(gate):
    layer = SqueezeExcite(6, 2, gate=gate).double()
    x = torch.randn(2, 6, 4, 3).double()
    z = layer.up.weight @ (layer.down.weight @ x.mean((2, 3)).T + layer.down.bias[:, None]).relu()
    z = (z + layer.up.bias[:, None]).T
    expected = z.sigmoid() if gate == "sigmoid" else (z / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(layer(x), x * expected[..., None, None])


def test_unknown_gate_is_refused():
    with pytest.raises(BadInput, match="tanh"):
        SqueezeExcite(8, gate="tanh")
