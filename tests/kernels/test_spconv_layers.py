"""SPConv's branches in one operator while it trains: results, gradients, memory, and what is left to PyTorch."""

import pytest
import torch
from torch import nn

from leanconv.kernels import spconv_layers
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.nn import SPConv2d
from tests.kernels.training_cases import (
    assert_compiles_as_one_graph,
    assert_near_in_bfloat16,
    assert_same_penalty,
    assert_step_as_in_float64,
    assert_step_as_without,
    assert_two_layers_learn_the_same,
    counted,
    step,
    with_random_norms,
)

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "two groups": lambda: SPConv2d(8, 12, 3, padding=1),
    "uneven shares": lambda: SPConv2d(17, 10, 3, padding=1, alpha=0.36, bias=False),
    "four groups, one norm": lambda: SPConv2d(16, 24, 3, padding=1, alpha=0.75, rep_groups=4, inner_norms=1),
    "stride": lambda: SPConv2d(8, 12, 3, stride=2, padding=1),
    "stride, dilated, four groups": lambda: SPConv2d(
        16, 8, 3, stride=2, padding=2, dilation=2, rep_groups=4, bias=False
    ),
    "1x5, dilated": lambda: SPConv2d(8, 12, (1, 5), padding=(0, 4), dilation=(1, 2)),
}


def made(kind="two groups"):
    torch.manual_seed(0)
    return with_random_norms(LAYERS[kind]())


@pytest.fixture
def runs(monkeypatch):
    """How often the operator's kernel ran."""
    return counted(monkeypatch, spconv_layers.cpu, "het_branches")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_float64(kind, frozen, recompute, runs):
    layer = made(kind)
    x = 1 + torch.randn(3, layer.in_channels, 9, 11)
    if frozen:  # the first layer of a network, some of whose weights are held
        layer.spatial.requires_grad_(False)
    before = dict(layer.__dict__)
    assert_step_as_in_float64(layer, x, image=frozen, recompute=recompute, used=lambda handle: "" in handle.layers)
    assert len(runs) == 2  # the branches are computed once more
    assert layer.__dict__ == before


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_is_as_near_to_float32_as_without(kind, runs):
    layer = made(kind)
    x = torch.randn(3, layer.in_channels, 9, 11)
    assert_near_in_bfloat16(layer, x, times=1.5, of_largest=1e-3)
    assert runs[0][0].dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["two groups", "stride"])
def test_gradients_of_gradients(kind):
    layer = made(kind)
    x = torch.randn(2, layer.in_channels, 5, 7, requires_grad=True)

    def run():
        a, b = layer.branches(x)
        return (a.pow(3) + a * b).sum()

    weights = layer.spatial.weight, layer.pointwise.weight, layer.plain.weight, layer.plain.bias
    assert_same_penalty(layer, x, weights, run)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["two groups", "stride"])
def test_compiles_as_one_graph(kind, autocast):
    assert_compiles_as_one_graph(made(kind), torch.randn(3, 8, 9, 11), autocast)


def test_a_network_learns_the_same():
    assert_two_layers_learn_the_same(SPConv2d)


@pytest.mark.parametrize("name", ["spatial", "pointwise", "plain", "pool"])
def test_a_hook_of_a_part_sees_what_it_makes(name, runs):
    layer, x, seen = made("stride"), torch.randn(2, 8, 9, 11), []
    getattr(layer, name).register_forward_hook(lambda module, inputs, y: seen.append(y))
    with use_training_kernels_(layer):
        step(layer, x)
    assert seen
    assert not runs


class _Doubled(SPConv2d):
    def branches(self, x):
        a, b = super().branches(x)
        return 2 * a, b


def _with_bias():
    layer = SPConv2d(8, 12, 3, padding=1)
    layer.spatial.bias = nn.Parameter(torch.randn(12))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Doubled(8, 12, 3, padding=1),
        lambda: SPConv2d(8, 12, 3, padding=1, padding_mode="reflect"),
        lambda: SPConv2d(12, 12, 3, padding=1, rep_groups=3),
        lambda: SPConv2d(8, 12, 3, padding=1, rep_groups=1),
        lambda: SPConv2d(16, 4096, 3, padding=1),
        _with_bias,
    ],
)
def test_other_layers_compute_as_before(make, runs):
    layer, x = make(), torch.randn(3, 16, 9, 11)
    assert_step_as_without(layer, x[:, : layer.in_channels], atol=1e-3, rtol=1e-3)
    assert not runs


def test_a_map_of_float64_is_left_to_pytorch(runs):
    assert_step_as_without(made().double(), torch.randn(2, 8, 9, 11, dtype=torch.float64))
    assert not runs
