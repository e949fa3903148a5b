"""Layers that keep their input alone for the gradient: results, gradients, statistics, memory, and who sees them."""

import copy

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.kernels import recomputed
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.measure.timing.training import peak_bytes
from leanconv.nn import DepthwiseSeparableConv2d, HetConv2d, SPConv2d, SPLConv2d
from tests.kernels.training_cases import step_and_buffers, with_random_norms

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "spconv": lambda: SPConv2d(8, 12, 3, padding=1, padding_mode="reflect"),
    "spconv, stride 2, one norm": lambda: SPConv2d(
        8, 12, 3, stride=2, padding=1, padding_mode="reflect", inner_norms=1
    ),
    "splconv": lambda: SPLConv2d(8, 12, 3, stride=2, padding=1),
    "splconv without stencils": lambda: SPLConv2d(8, 12, 3, stride=2, padding=1, depthwise=False, dilated=False),
    "depthwise_separable": lambda: DepthwiseSeparableConv2d(8, 12, 3, stride=2, padding=1),
    "hetconv": lambda: HetConv2d(64, 64, 3, padding=1, padding_mode="reflect", part=4),
}


def made(kind):
    torch.manual_seed(0)
    return with_random_norms(LAYERS[kind]())


@pytest.fixture
def again(monkeypatch):
    """How often a layer's forward pass ran so that it computes maps again."""
    found, inner = [], recomputed._plain

    def asked(layer, x):
        if not (plain := inner(layer, x)):
            found.append(layer)
        return plain

    monkeypatch.setattr(recomputed, "_plain", asked)
    return found


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_gradients_and_statistics_are_those_of_float64(kind, frozen, again):
    layer, x = made(kind), 1 + torch.randn(3, 64 if kind == "hetconv" else 8, 9, 11)
    if frozen:  # the first layer of a network, some of whose weights are held
        next(layer.parameters()).requires_grad_(False)
    plain, exact = copy.deepcopy(layer), copy.deepcopy(layer).double()
    with use_training_kernels_(layer, recompute=True):
        for _ in range(2):
            runs = (
                step_and_buffers(layer, x, image=frozen),
                step_and_buffers(plain, x, image=frozen),
                step_and_buffers(exact, x.double(), image=frozen),
            )
            for a, b, c in zip(*runs, strict=True):
                allowed = 4 * float((b - c).abs().max()) + 4e-6 * max(1.0, float(c.abs().max()))
                assert float((a - c).abs().max()) <= allowed
    assert len(again) == 2
    assert not {"forward", "_dealt"} & layer.__dict__.keys()


@pytest.mark.parametrize("kind", ["spconv", "splconv", "depthwise_separable"])
def test_autocast_is_as_near_to_float32_as_without(kind, again):
    layer, x = made(kind), torch.randn(3, 8, 9, 11)
    exact, eager = step_and_buffers(copy.deepcopy(layer), x), step_and_buffers(copy.deepcopy(layer), x, autocast=True)
    with use_training_kernels_(layer, recompute=True):
        found = step_and_buffers(layer, x, autocast=True)
    assert again
    for a, b, c in zip(found, eager, exact, strict=True):
        assert a.dtype == b.dtype
        assert (a.float() - c).norm() <= 2 * (b.float() - c).norm() + 0.1 * c.float().norm()


@pytest.mark.parametrize("kind", ["spconv", "splconv", "depthwise_separable"])
def test_a_hook_inside_is_called_once(kind, again):
    layer, seen = made(kind), []
    conv = next(m for m in layer.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 8, 9, 11)
    expected = step_and_buffers(copy.deepcopy(layer), x)
    with use_training_kernels_(layer, recompute=True):
        conv.register_forward_hook(lambda *call: seen.append(1))
        found = step_and_buffers(layer, x)
    assert seen == [1]
    assert not again
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["spconv", "splconv", "depthwise_separable"])
def test_without_a_gradient_it_is_the_layer_s_own(kind, again):
    layer, x = made(kind), torch.randn(2, 8, 9, 11)
    with torch.no_grad():
        expected = copy.deepcopy(layer)(x)
        with use_training_kernels_(layer, recompute=True):
            torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    assert not again


@pytest.mark.parametrize("kind", LAYERS)
def test_it_is_asked_for_or_cheap(kind):
    layer = made(kind)
    with use_training_kernels_(layer):
        assert bool({"forward", "_dealt"} & layer.__dict__.keys()) == kind.startswith("splconv")


@pytest.mark.parametrize("kind", ["spconv", "splconv", "depthwise_separable"])
def test_weights_that_changed_since_are_an_error(kind):
    layer = made(kind)
    with use_training_kernels_(layer, recompute=True):
        y = layer(torch.randn(2, 8, 9, 11).requires_grad_())
        with torch.no_grad():
            layer.pointwise.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("kind", ["spconv", "splconv", "depthwise_separable"])
def test_no_more_memory_than_dense_layers(kind):
    def network(conv):
        torch.manual_seed(0)
        parts = []
        for _ in range(4):
            parts += [conv(), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
        return nn.Sequential(*parts).to(memory_format=torch.channels_last)

    layers = {
        "dense": lambda: nn.Conv2d(16, 16, 3, padding=1),
        "spconv": lambda: SPConv2d(16, 16, 3, padding=1),
        "splconv": lambda: SPLConv2d(16, 16, 3, padding=1),
        "depthwise_separable": lambda: DepthwiseSeparableConv2d(16, 16, 3, padding=1),
    }
    x = torch.randn(8, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    held = {}
    for name in ("dense", kind):
        model = network(layers[name])
        with use_training_kernels_(model, recompute=True):
            held[name] = peak_bytes(lambda model=model: model(x).sum().backward())
    map_bytes = x.numel() * 4
    assert held[kind] <= held["dense"] + 2.1 * map_bytes  # both branches, of one layer at a time


class _Drawn(DepthwiseSeparableConv2d):
    def forward(self, x):
        return super().forward(x * torch.rand(()))


class _Doubled(SPLConv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def _spectral():
    layer = DepthwiseSeparableConv2d(8, 12, 3, padding=1)
    torch.nn.utils.parametrizations.spectral_norm(layer.pointwise)
    return layer


def _normed():
    layer = DepthwiseSeparableConv2d(8, 12, 3, padding=1)
    layer.pointwise = nn.Sequential(layer.pointwise, nn.BatchNorm2d(12))
    return layer


@pytest.mark.parametrize(
    "make", [lambda: _Drawn(8, 12, 3, padding=1), lambda: _Doubled(8, 12, 3, padding=1), _spectral, _normed]
)
def test_what_another_call_would_change_is_not_computed_again(make, again):
    layer, x = make(), torch.randn(3, 8, 9, 11)
    plain = copy.deepcopy(layer)
    torch.manual_seed(1)
    expected = step_and_buffers(plain, x)
    with use_training_kernels_(layer, recompute=True):
        torch.manual_seed(1)
        found = step_and_buffers(layer, x)
    assert not again
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_a_parameter_that_a_gated_layer_does_not_use_gets_no_gradient(again):
    layer = made("splconv")
    layer.unused = nn.Parameter(torch.ones(3))
    with use_training_kernels_(layer, recompute=True):
        layer(torch.randn(3, 8, 9, 11)).sum().backward()
    assert again
    assert layer.unused.grad is None
    assert layer.pointwise.weight.grad is not None


@pytest.mark.parametrize("kind", LAYERS)
def test_other_channels_are_the_layer_s_error(kind):
    layer = made(kind)
    with use_training_kernels_(layer, recompute=True), pytest.raises(BadInput, match="channels, the layer takes"):
        layer(torch.randn(2, layer.in_channels + 1, 9, 11))
