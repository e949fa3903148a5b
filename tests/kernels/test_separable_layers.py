"""Depthwise-separable layers and SPLConv's branches in one kernel: results, gradients, memory, and who sees them."""

import copy

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from leanconv.errors import BadInput
from leanconv.kernels import separable_layers
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.measure.timing.training import peak_bytes
from leanconv.nn import DepthwiseSeparableConv2d, SPLConv2d
from tests.kernels.training_cases import (
    assert_compiles_as_one_graph,
    assert_near_in_bfloat16,
    assert_same_penalty,
    assert_step_as_in_float64,
    counted,
    step,
    with_random_norms,
)

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "depthwise_separable": lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1),
    "depthwise_separable, 1x5, dilated": lambda: DepthwiseSeparableConv2d(
        8, 12, (1, 5), padding=(0, 4), dilation=(1, 2), bias=False
    ),
    "splconv": lambda: SPLConv2d(8, 12, 3, padding=1),
    "splconv, uneven": lambda: SPLConv2d(8, 5, 3, padding=1, alpha=0.4, rate=3, dilated_kernel_size=2),
    "splconv, one stencil": lambda: SPLConv2d(8, 12, 3, padding=1, dilated=False, bias=False),
    "splconv without stencils": lambda: SPLConv2d(8, 12, 3, padding=1, depthwise=False, dilated=False),
}


def made(kind):
    torch.manual_seed(0)
    return with_random_norms(LAYERS[kind]())


@pytest.fixture
def runs(monkeypatch):
    """How often the operator's kernel ran."""
    return counted(monkeypatch, separable_layers.cpu, "branches")


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_and_gradients_are_those_of_float64(kind, frozen, recompute, runs):
    layer, x = made(kind), 1 + torch.randn(3, 8, 9, 11)
    if frozen:  # the first layer of a network, some of whose weights are held
        next(layer.parameters()).requires_grad_(False)
    assert_step_as_in_float64(layer, x, image=frozen, recompute=recompute)
    assert runs
    assert not {"forward", "branches"} & layer.__dict__.keys()


@pytest.mark.parametrize("kind", ["splconv", "depthwise_separable"])
def test_autocast_is_as_near_to_float32_as_without(kind, runs):
    layer, x = made(kind), torch.randn(3, 8, 9, 11)
    assert_near_in_bfloat16(layer, x, times=2, of_own=0.1)  # ReLUs decide otherwise
    assert runs


@pytest.mark.parametrize("kind", ["splconv", "depthwise_separable"])
def test_gradients_of_gradients(kind):
    layer = made(kind)
    x = torch.randn(2, 8, 5, 7, requires_grad=True)

    def run():
        return (layer.branches(x)[0] if kind == "splconv" else layer(x)).square().sum()

    wanted = [p for name, p in layer.named_parameters() if "stencil" in name or "spatial" in name]
    assert_same_penalty(layer, x, wanted, run)


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["splconv", "depthwise_separable"])
def test_compiles_as_one_graph(kind, autocast):
    assert_compiles_as_one_graph(made(kind), torch.randn(3, 8, 9, 11), autocast)


@pytest.mark.parametrize("kind", ["splconv", "depthwise_separable"])
def test_a_hook_inside_is_called_and_the_layer_computes_as_before(kind, runs):
    layer, seen = made(kind), []
    conv = next(m for m in layer.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 8, 9, 11)
    expected = step(copy.deepcopy(layer), x)
    with use_training_kernels_(layer):
        conv.register_forward_hook(lambda *call: seen.append(1))
        found = step(layer, x)
    assert seen == [1]
    assert not runs
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


class _Doubled(DepthwiseSeparableConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def _spectral():
    layer = DepthwiseSeparableConv2d(8, 12, 3, padding=1)
    torch.nn.utils.parametrizations.spectral_norm(layer.pointwise)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: _Doubled(8, 12, 3, padding=1),
        _spectral,
        lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, stride=2),
        lambda: DepthwiseSeparableConv2d(8, 12, 3),
        lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, padding_mode="reflect"),
        lambda: DepthwiseSeparableConv2d(8, 12, 3, padding=1, block=True),
        lambda: SPLConv2d(8, 12, 3, padding=1, stride=2),
        lambda: DepthwiseSeparableConv2d(8, 2000, 3, padding=1),
    ],
)
def test_other_layers_run_on_their_own_convolutions(make, runs):
    layer, x = make(), torch.randn(3, 8, 9, 11)
    plain = copy.deepcopy(layer)
    with use_training_kernels_(layer):
        found = step(layer, x)
    assert not runs
    for a, b in zip(found, step(plain, x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("outputs", "autocast", "ours"), [(200, False, True), (200, True, True), (300, True, False)])
def test_wide_layers_are_left_to_onednn_sooner_in_bfloat16(outputs, autocast, ours, runs):
    layer = DepthwiseSeparableConv2d(8, outputs, 3, padding=1)
    with use_training_kernels_(layer):
        step(layer, torch.randn(1, 8, 5, 5), autocast)
    assert bool(runs) == ours


def test_a_map_of_float64_is_left_to_pytorch(runs):
    layer, x = made("splconv").double(), torch.randn(2, 8, 9, 11, dtype=torch.float64)
    expected = step(copy.deepcopy(layer), x)
    with use_training_kernels_(layer):
        assert all(torch.equal(a, b) for a, b in zip(step(layer, x), expected, strict=True))
    assert not runs


def test_a_depthwise_separable_network_takes_no_more_memory_than_a_dense_one():
    def network(conv):
        torch.manual_seed(0)
        parts = []
        for _ in range(4):
            parts += [conv(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts).to(memory_format=torch.channels_last)

    x = torch.randn(8, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    held = {}
    for conv in (nn.Conv2d, DepthwiseSeparableConv2d):
        model = network(conv)
        with use_training_kernels_(model):
            held[conv] = peak_bytes(lambda model=model: model(x).sum().backward())
    assert held[DepthwiseSeparableConv2d] <= 1.01 * held[nn.Conv2d]


@pytest.mark.parametrize(
    "replaced",
    [
        lambda layer: setattr(layer.spatial, "stride", (2, 2)),
        lambda layer: setattr(layer, "spatial", nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=True)),
        lambda layer: setattr(
            layer, "spatial", nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False, padding_mode="circular")
        ),
        lambda layer: setattr(layer, "spatial", nn.Conv2d(8, 8, 3, padding=1, bias=False)),
        lambda layer: setattr(layer, "pointwise", nn.Conv2d(8, 12, 3, padding=1)),
        lambda layer: setattr(layer, "pointwise", nn.Conv2d(8, 12, 1, groups=4)),
    ],
)
def test_a_convolution_that_was_put_in_anothers_place_is_its_own(replaced):
    layer, x = made("depthwise_separable"), torch.randn(2, 8, 9, 11)
    use_training_kernels_(layer)
    replaced(layer)
    assert torch.allclose(layer(x), layer.pointwise(layer.spatial(x)), atol=1e-5)


@pytest.mark.parametrize("kind", ["depthwise_separable", "splconv"])
def test_hooks_of_all_modules_see_the_convolutions_inside(kind):
    layer, x, seen = made(kind), torch.randn(2, 8, 9, 11), []
    use_training_kernels_(layer)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        layer(x)
    finally:
        handle.remove()
    assert sum("Conv2d" in name for name in seen) > 2


def test_a_wrong_number_of_channels_is_named():
    layer = made("depthwise_separable")
    use_training_kernels_(layer)
    with pytest.raises(BadInput, match="7 channels, the layer takes 8"):
        layer(torch.randn(1, 7, 6, 6))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_checkpoint_computes_it_again(kind):
    layer, x = made(kind), torch.randn(2, 8, 9, 11)
    use_training_kernels_(layer)
    plain, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(plain).square().sum().backward()
    torch.utils.checkpoint.checkpoint(layer, again, use_reentrant=False).square().sum().backward()
    assert torch.equal(plain.grad, again.grad)
