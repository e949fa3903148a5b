"""SPConv against the paper's formula written out, sample by sample."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.nn import HetConv2d, SPConv2d
from leanconv.ops.gated_sum import gated_sum


def literal(layer, x):
    """The specification's section 2 from the layer's own weights; eval mode, even sizes."""
    c = layer.split[0]
    s = layer.stride[0]
    pooled = F.avg_pool2d(x, s) if s > 1 else x
    a = F.conv2d(x[:, :c], layer.spatial.weight, None, s, 1, 1, layer.rep_groups)
    a = layer.norm1(a + F.conv2d(pooled[:, :c], layer.pointwise.weight))
    b = layer.norm2(F.conv2d(pooled[:, c:], layer.plain.weight, layer.plain.bias))
    y = torch.empty_like(a)
    for n in range(x.shape[0]):
        for m in range(a.shape[1]):
            weights = torch.softmax(torch.stack([a[n, m].mean(), b[n, m].mean()]), 0)
            y[n, m] = weights[0] * a[n, m] + weights[1] * b[n, m]
    return y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.25}, {"inner_norms": 1}, {"rep_groups": 1}])
def test_equals_the_definition(stride, options):
    layer = SPConv2d(8, 6, 3, stride, 1, dtype=torch.double, **options).eval()
    for norm in (layer.norm1, layer.norm2):
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 8, 8, 6, dtype=torch.double)
    torch.testing.assert_close(layer(x), literal(layer, x))


def test_equal_branches_pass_through():
    a = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(gated_sum(a, a.clone()), a)


def test_the_gate_is_a_softmax_and_takes_no_precision_from_half_types():
    a, b = torch.randn(2, 3, 40, 40).bfloat16(), torch.randn(2, 3, 40, 40).bfloat16()
    weights = torch.softmax(torch.stack([a.double().mean((2, 3)), b.double().mean((2, 3))]), 0)[..., None, None]
    exact = weights[0] * a.double() + weights[1] * b.double()
    assert (gated_sum(a, b).double() - exact).abs().max() < 0.02
    assert gated_sum(a, b).dtype == torch.bfloat16


def test_deploys_as_a_blocked_hetconv():
    folded = SPConv2d(8, 8, 3, padding=1).eval().fold()
    assert isinstance(folded.representative, HetConv2d)
    assert (folded.representative.part, folded.representative.arrangement) == (2, "blocked")
    weights = sum(p.numel() for p in folded.parameters())
    assert weights == 8 * 8 * (0.5 * 9 / 2 + 1) - 8 * 4 / 2 + 8 + 8  # alpha·C·M/g fewer, two biases


def test_odd_sizes_at_stride_2_average_only_real_pixels():
    layer = SPConv2d(4, 4, 3, 2, 1, bias=False, dtype=torch.double).eval()
    x = torch.ones(1, 4, 5, 5, dtype=torch.double)
    assert layer(x).shape[-2:] == (3, 3)
    torch.testing.assert_close(layer.pool(x), torch.ones(1, 4, 3, 3, dtype=torch.double))


def test_state_dict_keys_are_api():
    layer = SPConv2d(8, 8, 3, padding=1)
    assert [k for k, _ in layer.named_parameters()] == [
        "spatial.weight",
        "pointwise.weight",
        "plain.weight",
        "plain.bias",
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
    ]
