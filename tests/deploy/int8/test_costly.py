"""Which layers int8 costs most: against each layer quantised by hand, and on a network with one bad layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.deploy.int8 import Calibration
from leanconv.deploy.int8.costly import Layer, _map, _weight, costly_layers, most
from leanconv.deploy.program import capture_flat
from tests.deploy.int8.networks import built


def costs(model, x, data, **named):
    return costly_layers(capture_flat(model, (x,), {}), Calibration(model, x, data).tensors, **named)


def test_the_layer_behind_a_channel_that_is_much_larger_costs_most():
    x, data = torch.rand(2, 3, 24, 24), torch.rand(4, 3, 24, 24)
    found = costs(built(1000.0), x, data)
    assert found[0].name == "mid.0"
    assert {layer.name for layer in found} == {"stem.0", "mid.0", "head"}
    assert found[0].loss > 20 * found[1].loss
    even = costs(built(), x, data)
    assert max(layer.loss for layer in even) < 1e-3
    assert most(found).startswith("int8 costs most in mid.0 (")
    assert most([]) == ""


def test_the_loss_of_one_layer_alone_is_what_its_rounding_does():
    model, data = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh()).eval(), torch.rand(1, 3, 12, 12) - 0.3
    (layer,) = costs(model, data, data)
    conv = model[0]
    with torch.no_grad():
        step = float(data.max() - data.min()) / 255
        x = torch.round(data / step) * step
        scale = conv.weight.abs().amax((1, 2, 3), keepdim=True) / 127
        rounded = F.conv2d(x, torch.round(conv.weight / scale) * scale, conv.bias).tanh()
        y = model(data)
        expected = float((rounded - y).square().sum() / (y - y.mean()).square().sum())
    assert layer == Layer("0", pytest.approx(expected, rel=0.05))
    assert expected > 0


def test_rounding_is_at_most_half_a_step_and_keeps_zero():
    x = torch.linspace(-1, 3, 1001)
    rounded = _map(x, -1.0, 3.0)
    assert (rounded - x).abs().max() <= 4 / 255 * 0.5 + 4 / 255 * 0.5 + 1e-6  # the ends move with the zero
    assert len(rounded.unique()) == 256
    assert _map(torch.zeros(1), -1.0, 3.0) == 0
    assert torch.equal(_map(torch.zeros(3), 0.0, 0.0), torch.zeros(3))
    weight = torch.randn(4, 6, 3, 3)
    for axis in (0, 1):
        step = weight.abs().amax([d for d in range(4) if d != axis], keepdim=True) / 127
        assert bool(((_weight(weight, axis) - weight).abs() <= step / 2 + 1e-7).all())
    assert torch.equal(_weight(torch.zeros(2, 2, 1, 1), 0), torch.zeros(2, 2, 1, 1))


def test_every_kind_of_layer_has_its_name_and_time_is_kept():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 2, stride=2), nn.ConvTranspose2d(4, 3, 2, stride=2)
            self.last = nn.Linear(8, 5)

        def forward(self, x):
            return self.last(self.up(self.down(x)))

    model, x = Mixed().eval(), torch.rand(1, 3, 8, 8)
    assert {layer.name for layer in costs(model, x, x)} == {"down", "up", "last"}
    assert len(costs(model, x, x, seconds=0.0)) == 1  # the worst at its own output
    assert costs(nn.ReLU().eval(), x, x) == []
