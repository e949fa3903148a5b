"""The SIC layer against its recursion written out, and its one-unit form as a dense kernel."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.nn import DepthwiseSeparableConv2d, SICConv2d


def randomised(layer):
    with torch.no_grad():
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.normal_()
                norm.bias.normal_()
    return layer.eval()


def literal(layer, x, stride, padding):
    """h_j = act(norm(PW_j(DW_j(h))) + h), with each unit's sum where the shapes agree."""
    h = x
    for j in range(layer.units):
        pair, last = layer.pairs[j], j == layer.units - 1
        first = {"stride": stride, "padding": padding} if j == 0 else {"padding": 1}
        z = F.conv2d(F.conv2d(h, pair.spatial.weight, groups=h.shape[1], **first), pair.pointwise.weight)
        z = z if pair.pointwise.bias is None else z + pair.pointwise.bias[:, None, None]
        if layer.block or (layer.norm_between and not last):
            norm = layer.norms[j]
            z = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        if layer.residual and z.shape == h.shape:
            z = z + h
        h = z.relu() if (layer.block if last else layer.act_between) else z
    return h


@pytest.mark.parametrize(("c", "o", "stride", "padding"), [(6, 6, 1, 1), (6, 8, 1, 1), (6, 6, 2, 1), (6, 6, 1, 0)])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"units": 2}, {"units": 3, "residual": False}, {"units": 2, "block": True}, {"block": True},
        {"units": 2, "norm_between": False}, {"units": 3, "act_between": False},
    ],
)  # fmt: skip
def test_equals_the_recursion(c, o, stride, padding, options):
    layer = randomised(SICConv2d(c, o, 3, stride, padding, dtype=torch.double, **options))
    x = torch.randn(2, c, 8, 9, dtype=torch.double)
    torch.testing.assert_close(layer(x), literal(layer, x, stride, padding))


def test_one_unit_with_its_identity_is_one_dense_kernel():
    layer = SICConv2d(6, 6, 3, padding=1, dtype=torch.double)
    weight = layer.pairs[0].dense_weight().clone()
    for c in range(6):
        weight[c, c, 1, 1] += 1
    x = torch.randn(2, 6, 7, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, layer.pairs[0].pointwise.bias, padding=1))


def test_without_the_identity_it_is_depthwise_separable():
    ours, theirs = SICConv2d(6, 9, 3, padding=1), DepthwiseSeparableConv2d(6, 9, 3, padding=1)
    theirs.load_state_dict(ours.pairs[0].state_dict())
    x = torch.randn(1, 6, 7, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_projection_leaves_the_tail_of_the_singular_values():
    dense = nn.Conv2d(6, 6, 3, padding=1, dtype=torch.double)
    layer = SICConv2d.from_conv(dense)
    assert layer.project_(dense)
    rest = dense.weight.detach().clone()
    rest[range(6), range(6), 1, 1] -= 1
    tail = sum(torch.linalg.svdvals(rest[:, c].flatten(1))[1:].square().sum() for c in range(6))
    torch.testing.assert_close((layer.dense_weight() - dense.weight).square().sum(), tail)
    assert not SICConv2d.from_conv(dense, block=True).project_(dense)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_a_dilated_even_kernel_keeps_its_size_in_later_units():
    layer = SICConv2d(4, 4, 2, padding="same", dilation=3, units=2).eval()
    assert layer(torch.randn(1, 4, 7, 6)).shape == (1, 4, 7, 6)
    assert layer._adds == [True, True]


def test_state_dict_keys_are_api():
    assert [k for k, _ in SICConv2d(4, 4, 3, units=2).named_parameters()] == [
        "pairs.0.spatial.weight",
        "pairs.0.pointwise.weight",
        "pairs.1.spatial.weight",
        "pairs.1.pointwise.weight",
        "pairs.1.pointwise.bias",
        "norms.0.weight",
        "norms.0.bias",
    ]
