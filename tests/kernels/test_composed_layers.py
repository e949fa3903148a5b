"""Layers of several filters a channel as the dense convolution they equal, while they train."""

import copy
import functools

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.kernels import composed_layers
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.nn import DepthwiseSeparableConv2d
from tests.cpus import SAPPHIRE_RAPIDS, ZEN4
from tests.kernels.training_cases import (
    assert_a_batch_of_none_has_a_result,
    assert_compiles_as_one_graph,
    assert_float64_and_one_sample_are_pytorchs,
    assert_near_in_bfloat16,
    assert_same_penalty,
    assert_step_as_in_float64,
    assert_step_as_without,
    assert_two_layers_learn_the_same,
    counted,
    peak_of_four_layers,
    step,
)

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "two": lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, multiplier=2),
    "three, strided, no bias": lambda: DepthwiseSeparableConv2d(6, 10, 3, 2, 1, bias=False, multiplier=3),
    "1x5, dilated": lambda: DepthwiseSeparableConv2d(5, 7, (1, 5), padding=(1, 3), dilation=(1, 2), multiplier=2),
    "four, even": lambda: DepthwiseSeparableConv2d(4, 4, (2, 3), padding=(1, 0), multiplier=4),
    "same": lambda: DepthwiseSeparableConv2d(4, 4, 3, padding="same", dilation=2, multiplier=2),
}


def made(kind="two"):
    torch.manual_seed(0)
    return LAYERS[kind]()


@pytest.fixture
def runs(monkeypatch):
    """How often a dense kernel was put together."""
    return counted(monkeypatch, composed_layers, "_dense")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", ["", "spatial", "pointwise"])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_float64(kind, frozen, recompute, runs):
    layer = made(kind)
    if frozen:
        getattr(layer, frozen).requires_grad_(False)
    before, x = dict(layer.__dict__), 1 + torch.randn(3, layer.in_channels, 9, 11)
    assert_step_as_in_float64(layer, x, image=False, recompute=recompute, used=lambda handle: "" in handle.layers)
    assert len(runs) == 1
    assert layer.__dict__ == before


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_is_as_near_to_float32_as_without(kind, runs):
    layer = made(kind)
    assert_near_in_bfloat16(layer, torch.randn(3, layer.in_channels, 9, 11), times=1.5)
    assert runs


def test_a_map_of_bfloat16_gives_one(runs):
    layer, x = made(), torch.randn(2, 8, 9, 11)
    with use_training_kernels_(layer):
        y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    assert runs


@pytest.mark.parametrize(("width", "float32", "tiles", "vectors"), [(64, 1, 1, 1), (128, 0, 1, 0), (512, 0, 0, 0)])
def test_wide_layers_run_their_own_convolutions(width, float32, tiles, vectors, monkeypatch, runs):
    x = torch.randn(1, width, 4, 4)
    for cpu, expected in ((SAPPHIRE_RAPIDS, tiles), (ZEN4, vectors)):
        monkeypatch.setattr(composed_layers, "this_cpu", lambda cpu=cpu: cpu)
        layer = DepthwiseSeparableConv2d(width, width, 3, padding=1, multiplier=2)
        with use_training_kernels_(layer):
            for autocast, times in ((False, float32), (True, expected)):
                runs.clear()
                step(layer, x, autocast)
                assert len(runs) == times, (cpu, autocast)


def test_what_the_layer_refuses_is_refused(runs):
    """One column of a 1×1 would be broadcast."""
    layer = made()
    layer.pointwise = nn.Conv2d(2, 12, 1)
    with use_training_kernels_(layer), pytest.raises(RuntimeError, match="16 channels"):
        layer(torch.randn(2, 8, 9, 11))
    assert not runs


@pytest.mark.parametrize(("kernel", "tiles"), [(5, 1), (7, 0)])
def test_larger_kernels_need_fewer_channels(kernel, tiles, monkeypatch, runs):
    monkeypatch.setattr(composed_layers, "this_cpu", lambda: SAPPHIRE_RAPIDS)
    layer = DepthwiseSeparableConv2d(90, 90, kernel, padding=kernel // 2, multiplier=2)
    with use_training_kernels_(layer):
        step(layer, torch.randn(1, 90, 8, 8))
        assert not runs
        step(layer, torch.randn(1, 90, 8, 8), True)
        assert len(runs) == tiles


@pytest.mark.parametrize(("stride", "width", "dense"), [(2, 1, False), (2, 2, False), (2, 3, True), ((2, 1), 1, True)])
def test_one_column_behind_a_stride_is_not_left_to_pytorch(stride, width, dense, runs):
    """PyTorch 2.14.1's bfloat16 convolution on AMX is wrong there."""
    layer, x = DepthwiseSeparableConv2d(16, 16, 3, stride, 1, multiplier=2), torch.randn(2, 16, 13, width)
    with use_training_kernels_(layer), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert bool(runs) == dense
    assert y.shape == layer(x).shape
    if dense:  # the layer's own convolutions may be wrong there, too
        torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_gradients_of_gradients():
    layer = made()
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    assert_same_penalty(layer, x, list(layer.parameters()), lambda: layer(x).pow(3).sum())


@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_as_one_graph(autocast):
    assert_compiles_as_one_graph(made(), torch.randn(3, 8, 9, 11), autocast)


def test_a_network_learns_the_same():
    two = functools.partial(DepthwiseSeparableConv2d, multiplier=2)
    two.__name__ = DepthwiseSeparableConv2d.__name__
    assert_two_layers_learn_the_same(two)


@pytest.mark.parametrize("part", ["spatial", "pointwise"])
def test_a_hook_on_a_convolution_sees_what_it_makes(part, runs):
    layer, x, seen = made(), torch.randn(2, 8, 9, 11), []
    getattr(layer, part).register_forward_hook(lambda module, inputs, y: seen.append(y))
    assert_step_as_without(layer, x, atol=1e-4, rtol=1e-3)
    assert seen
    assert not runs


class _Doubled(DepthwiseSeparableConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Doubled(8, 12, 3, padding=1, multiplier=2),
        lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, padding_mode="reflect", multiplier=2),
        lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, multiplier=1),
        lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, multiplier=2, block=True),
    ],
)
def test_other_layers_compute_as_before(make, runs):
    assert_step_as_without(make(), torch.randn(3, 8, 9, 11), atol=1e-4, rtol=1e-3)
    assert not runs


OTHERS = {
    "circular": lambda layer: setattr(layer, "spatial", _depthwise(16, padding_mode="circular")),
    "a bias": lambda layer: setattr(layer, "spatial", _depthwise(16, bias=True)),
    "three filters": lambda layer: (
        setattr(layer, "spatial", _depthwise(24)),
        setattr(layer, "pointwise", nn.Conv2d(24, 12, 1)),
    ),
    "one filter": lambda layer: (
        setattr(layer, "spatial", _depthwise(8)),
        setattr(layer, "pointwise", nn.Conv2d(8, 12, 1)),
    ),
    "more outputs": lambda layer: setattr(layer, "pointwise", nn.Conv2d(16, 14, 1)),
    "5x5": lambda layer: setattr(layer, "spatial", nn.Conv2d(8, 16, 5, padding=2, groups=8, bias=False)),
}


def _depthwise(filters, bias=False, **options):
    return nn.Conv2d(8, filters, 3, padding=1, groups=8, bias=bias, **options)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("before", [False, True])
def test_another_convolution_in_its_place_is_what_runs(before, other, runs):
    layer, x = made(), torch.randn(2, 8, 9, 11)
    if before:
        OTHERS[other](layer)
    with use_training_kernels_(layer):
        if not before:
            OTHERS[other](layer)
        found = step(layer, x)
    for a, b in zip(found, step(copy.deepcopy(layer), x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert not runs


def test_a_map_of_float64_and_one_sample_are_left_to_pytorch(runs):
    assert_float64_and_one_sample_are_pytorchs(made(), runs)


def test_a_batch_of_none_has_a_result():
    layer = made()
    assert_a_batch_of_none_has_a_result(layer, layer.spatial.weight)


def test_a_wrong_number_of_channels_is_named():
    layer = made()
    use_training_kernels_(layer)
    with pytest.raises(BadInput, match="7 channels, the layer takes 8"):
        layer(torch.randn(1, 7, 6, 6))


def test_a_network_takes_no_more_memory_than_a_dense_one():
    several = functools.partial(DepthwiseSeparableConv2d, multiplier=3)
    assert peak_of_four_layers(several) <= 1.02 * peak_of_four_layers(nn.Conv2d)
