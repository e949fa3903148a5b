"""What kernels for training leave to PyTorch: torch.func and forward mode, other channels, no sample; and float16."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp

from leanconv.errors import BadInput
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.nn import DepthwiseSeparableConv2d, HetConv2d, SPConv2d, SPLConv2d

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "pointwise": lambda: nn.Conv2d(8, 8, 1),
    "depthwise_separable": lambda: DepthwiseSeparableConv2d(8, 8, 3, padding=1),
    "hetconv": lambda: HetConv2d(8, 8, 3, padding=1, part=4),
    "spconv": lambda: SPConv2d(8, 8, 3, padding=1),
    "splconv": lambda: SPLConv2d(8, 8, 3, padding=1),
    "splconv, stride 2": lambda: SPLConv2d(8, 8, 3, stride=2, padding=1),
}


def gradients(layer, x):
    """Of a function of the parameters."""

    def loss(own):
        buffers = {name: b.clone() for name, b in layer.named_buffers()}
        return functional_call(layer, (own, buffers), (x,)).square().sum()

    return list(grad(loss)({name: p.detach() for name, p in layer.named_parameters()}).values())


def along(layer, x):
    """How the result moves with x, by `torch.func`."""

    def result(x):
        return functional_call(layer, {name: each.clone() for name, each in layer.state_dict().items()}, (x,))

    return [jvp(result, (x,), (torch.ones_like(x),))[1]]


def dual(layer, x):
    """The same in forward mode alone."""
    with forward_ad.dual_level():
        return [forward_ad.unpack_dual(layer(forward_ad.make_dual(x, torch.linspace(0, 1, x.numel()).view_as(x))))[1]]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own
@pytest.mark.parametrize("take", [gradients, along, dual])
@pytest.mark.parametrize("kind", LAYERS)
def test_derivatives_are_those_without_kernels(kind, take):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), torch.randn(2, 8, 5, 7)
    expected = take(copy.deepcopy(layer), x)
    with use_training_kernels_(layer) as handle:
        assert handle.layers
        found = take(layer, x)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_map_of_other_channels_is_the_error_that_it_is_without_kernels(kind):
    layer, x = LAYERS[kind](), torch.randn(2, 7, 5, 7)
    said = []
    for _ in range(2):
        with pytest.raises((BadInput, RuntimeError)) as error:
            layer(x)
        said.append((error.type, str(error.value)))
        use_training_kernels_(layer)
    assert said[0] == said[1]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_map_of_no_sample_has_a_result_and_gradients(kind):
    layer = LAYERS[kind]()
    with use_training_kernels_(layer):
        y = layer(torch.randn(0, 8, 5, 7))
        found = torch.autograd.grad(y.sum(), list(layer.parameters()))
    assert list(y.shape) == ([0, 8, 3, 4] if "stride" in kind else [0, 8, 5, 7])
    assert not any(each.any() for each in found)


@pytest.mark.parametrize("kind", LAYERS)
def test_float16_is_as_near_to_float32_as_without(kind):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), torch.randn(2, 8, 5, 7)
    plain = copy.deepcopy(layer)
    exact = plain(x)
    with use_training_kernels_(layer), torch.autocast("cpu", torch.float16):
        found, eager = layer(x), plain(x)
    assert found.dtype == eager.dtype == torch.float16
    assert (found.float() - exact).norm() <= 1.5 * (eager.float() - exact).norm()
