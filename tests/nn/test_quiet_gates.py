"""quiet_gates_: the same operator with other first weights, its gates near one half."""

import copy

import pytest
import torch
from torch import nn

from benchmarks.gate_layers import blended, spread, tempered
from leanconv.nn import SPConv2d, SPLConv2d, quiet_gates_
from leanconv.nn.base import make
from leanconv.runs import load

OPERATORS = ["spconv", "spconv(inner_norms=1)", "splconv", "splconv(depthwise=False)"]


def pair(operator, scale=0.1, **sizes):
    """A layer in float64 with the norm that follows it, and a quiet copy."""
    torch.manual_seed(0)
    layer = make(operator, 8, 6, 3, padding=1, **sizes)
    plain = nn.Sequential(layer, nn.BatchNorm2d(6, eps=1e-16)).double()
    with torch.no_grad():
        layer.plain.bias.normal_()
    quiet = copy.deepcopy(plain)
    assert quiet_gates_(quiet, scale) == 1
    return plain, quiet


@pytest.mark.parametrize("operator", OPERATORS)
def test_it_is_the_blend_of_a_gate_that_is_nearer_to_one_half(operator):
    """s · (g · a + (1 - g) · b) with g of s · d: what the norm behind it sees is a gate of smaller logits."""
    plain, quiet = pair(operator, 0.25)
    x = torch.randn(4, 8, 5, 7, dtype=torch.double)
    with blended(tempered(0.25)):
        expected = plain[0](x)
    torch.testing.assert_close(quiet[0](x), 0.25 * expected)
    assert quiet.state_dict().keys() == plain.state_dict().keys()
    assert not torch.allclose(quiet(x), plain(x), atol=1e-3)


def test_it_is_an_initialisation_and_nothing_else():
    """A copy, a checkpoint or a second process needs nothing but the weights."""
    quiet = pair("spconv")[1]
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in quiet.modules())
    assert all(not parameter._backward_hooks for parameter in quiet.parameters())


def test_what_has_no_gate_is_left_alone():
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    before = copy.deepcopy(dense.state_dict())
    assert quiet_gates_(dense) == 0
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


def test_layers_without_bias_and_frozen_ones_are_taken():
    frozen = SPConv2d(4, 4, 3, padding=1, bias=False).requires_grad_(False)
    assert quiet_gates_(nn.ModuleList([frozen, SPLConv2d(4, 4, 3, padding=1, bias=False)])) == 2
    assert frozen.norm1.weight.tolist() == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("operator", ["spconv", "splconv"])
def test_brightness_does_not_become_the_common_mode_of_all_channels(operator):
    """Images of different brightness: with usual weights one mode has a third of the last layer's variance and more."""
    found = {}
    x = 0.3 * torch.randn(24, 3, 32, 32) + torch.randn(24, 1, 1, 1)
    for quiet in (False, True):
        torch.manual_seed(1)
        net = load(f"leanconv:vgg16_cifar?width=0.25&conv={operator}").train()
        if quiet:
            quiet_gates_(net)
        last = [m for m in net.modules() if isinstance(m, (SPConv2d, SPLConv2d))][-1]
        last.register_forward_hook(lambda layer, inputs, y, quiet=quiet: found.update({quiet: spread(y.detach())}))
        with torch.no_grad():
            net(x)
    assert found[True]["common"] < 0.75 * found[False]["common"]
    assert found[True]["rank"] > 1.2 * found[False]["rank"]
