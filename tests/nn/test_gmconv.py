"""GMConv against its mask written out, the rings against one convolution per sample, σ's gradient as a formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.nn import GMConv2d


def gaussian(sigma, kernel):
    """exp(-(a² + b²) / 2σ²) for one σ, tap by tap."""
    mask = torch.empty(kernel, dtype=torch.double)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            a, b = i - (kernel[0] - 1) / 2, j - (kernel[1] - 1) / 2
            mask[i, j] = math.exp(-(a * a + b * b) / (2 * (sigma**2 + 1e-6)))
    return mask


def masked(layer, sigmas):
    """The dense kernel under its masks; `sigmas` has 1, O or C entries."""
    weight = layer.weight.detach().clone()
    filters = layer.out_channels // layer.groups
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            place = {"layer": 0, "out": o, "in": o // filters * weight.shape[1] + i}[layer.granularity]
            weight[o, i] *= gaussian(sigmas[place].item(), layer.kernel_size)
    return weight


@pytest.mark.parametrize("granularity", ["layer", "out", "in"])
@pytest.mark.parametrize("kernel", [(3, 3), (4, 4), (5, 2), (1, 7)])
@pytest.mark.parametrize("groups", [1, 2])
def test_static_equals_the_masked_convolution(granularity, kernel, groups):
    layer = GMConv2d(4, 6, kernel, 2, 1, 2, groups=groups, granularity=granularity, dtype=torch.double)
    with torch.no_grad():
        layer.s.uniform_(0.5, 4)
    x = torch.randn(2, 4, 14, 13, dtype=torch.double)
    expected = F.conv2d(x, masked(layer, layer.s), layer.bias, 2, 1, 2, groups)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("granularity", ["layer", "out", "in"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "mode"),
    [
        (3, 1, 1, 1, "zeros"), (3, 2, 1, 1, "reflect"), (4, 1, "same", 1, "circular"), (5, 2, 0, 2, "zeros"),
        ((7, 2), (1, 2), (3, 4), (1, 2), "replicate"), (6, 1, 1, 1, "zeros"), (1, 2, 1, 1, "zeros"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 2])
def test_dynamic_rings_equal_one_masked_convolution_per_sample(
    granularity, kernel, stride, padding, dilation, mode, groups
):
    layer = GMConv2d(
        4,
        6,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        padding_mode=mode,
        mode="dynamic",
        sigma=1.5,
        granularity=granularity,
        dtype=torch.double,
    )
    with torch.no_grad():
        layer.up.weight.normal_()
        layer.down.bias.fill_(2)  # every sample passes the ReLU
    x = torch.randn(3, 4, 11, 12, dtype=torch.double) * torch.tensor([1.0, 5, 20])[:, None, None, None]
    sigmas = layer.sigmas(x)
    assert sigmas.unique().numel() == sigmas.numel()
    plain = nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups, padding_mode=mode, dtype=torch.double)
    plain.bias.data.copy_(layer.bias)
    for n in range(3):
        plain.weight.data.copy_(masked(layer, sigmas[n]))
        torch.testing.assert_close(layer(x)[n : n + 1], plain(x[n : n + 1]))


def test_the_predictor():
    layer = GMConv2d(80, 8, 3, mode="dynamic", dtype=torch.double)
    assert layer.down.weight.shape == (5, 80)
    assert GMConv2d(8, 8, 3, mode="dynamic").down.out_features == 4
    x = torch.randn(3, 80, 6, 5, dtype=torch.double)
    torch.testing.assert_close(layer.sigmas(x), torch.full((3, 1), 5.0, dtype=torch.double))
    with torch.no_grad():
        layer.up.weight.normal_()
        layer.up.bias.normal_()
    hidden = torch.relu(x.mean((2, 3)) @ layer.down.weight.T + layer.down.bias)
    z = hidden @ layer.up.weight.T + layer.up.bias
    torch.testing.assert_close(layer.sigmas(x), torch.log1p(torch.exp(z + math.log(math.expm1(5)))))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_wide_gaussian_is_the_plain_convolution(mode):
    dense = nn.Conv2d(4, 6, 5, padding=2, dtype=torch.double)
    layer = GMConv2d(4, 6, 5, padding=2, mode=mode, sigma=1e6, dtype=torch.double)
    layer.load_state_dict(dense.state_dict())
    x = torch.randn(2, 4, 7, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


def test_the_mask_at_the_start_is_the_specifications():
    layer = GMConv2d(1, 1, 3)
    mask = layer._mask(layer.s).detach()[0, 0, :2, :2].flatten()
    assert [round(value, 3) for value in mask.tolist()] == [0.961, 0.98, 0.98, 1]


def test_gradient_of_sigma_is_the_formula():
    layer = GMConv2d(3, 4, 5, padding=2, sigma=1.7, dtype=torch.double)
    x, g = torch.randn(2, 3, 6, 7, dtype=torch.double), torch.randn(2, 4, 6, 7, dtype=torch.double)
    (layer(x) * g).sum().backward()
    w = layer.dense_weight().detach().requires_grad_()
    (F.conv2d(x, w, layer.bias, padding=2) * g).sum().backward()
    offsets = torch.arange(-2.0, 3, dtype=torch.double)
    rho, m = offsets[:, None] ** 2 + offsets**2, gaussian(1.7, (5, 5))
    expected = (w.grad * layer.weight * m * rho).sum() / 1.7**3
    torch.testing.assert_close(layer.s.grad[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("k", [3, 4, 5, 7])
def test_rings_cost_one_dense_convolution(k):
    layer = GMConv2d(4, 6, k, padding=k // 2, mode="dynamic")
    with FlopCounterMode(display=False) as counter:
        y = layer(torch.randn(1, 4, 9, 9))
    assert counter.get_total_flops() == 2 * (y[0, 0].numel() * 4 * 6 * k * k + 4 * 4 + 4)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("granularity", ["layer", "out", "in"])
def test_projection_is_exact(mode, granularity):
    dense = nn.Conv2d(4, 6, 5, groups=2, dtype=torch.double)
    layer = GMConv2d.from_conv(dense, mode=mode, granularity=granularity, sigma=0.8)
    if mode == "dynamic":
        torch.nn.init.normal_(layer.up.weight)
    assert layer.project_(dense)
    x = torch.randn(2, 4, 7, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


def test_projection_under_a_needle_of_a_mask_is_refused():
    dense = nn.Conv2d(4, 6, 5)
    layer = GMConv2d.from_conv(dense, sigma=0.1)
    before = layer.weight.clone()
    assert not layer.project_(dense)
    torch.testing.assert_close(layer.weight, before, rtol=0, atol=0)


def test_a_vanishing_sigma_stays_finite():
    layer = GMConv2d(2, 2, 4, mode="dynamic")
    with torch.no_grad():
        layer.up.bias.fill_(-1e4)
    y = layer(torch.randn(2, 2, 8, 8))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_folds_and_state_dict_keys_are_api():
    layer = GMConv2d(4, 6, 3)
    assert list(layer.state_dict()) == ["weight", "bias", "s"]
    assert type(layer.fold()) is nn.Conv2d
    assert list(layer.fold().state_dict()) == ["weight", "bias"]
    dynamic = GMConv2d(4, 6, 3, mode="dynamic", bias=False)
    assert dynamic.fold() is dynamic
    assert list(dynamic.state_dict()) == ["weight", "down.weight", "down.bias", "up.weight", "up.bias"]
    with pytest.raises(RuntimeError, match=r"Missing.*down\.bias"):
        dynamic.load_state_dict({k: v for k, v in dynamic.state_dict().items() if k != "down.bias"})
