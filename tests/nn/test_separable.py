"""The separable pair: MobileNet's block, and projections against the best rank that exists."""

import copy

import pytest
import torch
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.kernels.training import use_training_kernels_
from leanconv.nn import DepthwiseSeparableConv2d, GroupPointwiseConv2d


def test_an_exactly_separable_kernel_is_recovered():
    source = DepthwiseSeparableConv2d(6, 10, 3, padding=1, dtype=torch.double)
    dense = nn.Conv2d(6, 10, 3, padding=1, dtype=torch.double)
    dense.load_state_dict({"weight": source.dense_weight().detach(), "bias": source.pointwise.bias.detach()})
    layer = DepthwiseSeparableConv2d.from_conv(dense)
    assert layer.project_(dense)
    x = torch.randn(2, 6, 8, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize(("c", "o", "part"), [(8, 12, 4), (8, 3, 2), (6, 6, 1), (6, 9, 6)])
def test_grouped_projection_error_is_the_tail_of_the_singular_values(c, o, part):
    dense = nn.Conv2d(c, o, 3, padding=1, dtype=torch.double)
    layer = GroupPointwiseConv2d.from_conv(dense, part=part)
    assert layer.project_(dense)
    tail = 0.0
    for block in dense.weight.split(c // part, 1):
        tail += torch.linalg.svdvals(block.flatten(1))[c // part :].square().sum()
    torch.testing.assert_close(
        (layer.dense_weight() - dense.weight).square().sum(), torch.as_tensor(tail), atol=1e-12, rtol=1e-9
    )


def test_part_equal_to_the_channels_is_depthwise_separable():
    a = DepthwiseSeparableConv2d(6, 4, 3, padding=1)
    b = GroupPointwiseConv2d(6, 4, 3, padding=1, part=6)
    b.load_state_dict(a.state_dict())
    x = torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(a(x), b(x), rtol=0, atol=0)


def test_the_block_is_mobilenets():
    block = DepthwiseSeparableConv2d(4, 6, 3, 2, 1, bias=False, block=True).eval()
    x = torch.randn(1, 4, 8, 8)
    expected = block.norm2(block.pointwise(block.norm1(block.spatial(x)).relu())).relu()
    torch.testing.assert_close(block(x), expected)


def test_state_dict_keys_are_api():
    assert list(DepthwiseSeparableConv2d(4, 4, 3).state_dict()) == [
        "spatial.weight",
        "pointwise.weight",
        "pointwise.bias",
    ]


@pytest.mark.parametrize(("c", "o", "multiplier"), [(8, 12, 2), (4, 16, 3), (6, 4, 5), (3, 16, 9), (2, 3, 11)])
def test_several_filters_a_channel_keep_as_many_singular_values(c, o, multiplier):
    dense = nn.Conv2d(c, o, 3, padding=1, dtype=torch.double)
    layer = DepthwiseSeparableConv2d.from_conv(dense, multiplier=multiplier)
    assert layer.project_(dense)
    values = torch.linalg.svdvals(dense.weight.transpose(0, 1).flatten(2))  # C min(O, 9)
    error = (layer.dense_weight() - dense.weight).square().sum()
    torch.testing.assert_close(error, values[:, multiplier:].square().sum(), atol=1e-12, rtol=1e-9)


def test_as_many_filters_as_taps_are_the_dense_convolution():
    dense = nn.Conv2d(5, 11, (3, 2), (2, 1), (1, 0), dtype=torch.double)
    layer = DepthwiseSeparableConv2d.from_conv(dense, multiplier=6)
    assert layer.project_(dense)
    x = torch.randn(2, 5, 9, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


def test_filters_of_a_channel_lie_side_by_side():
    layer = DepthwiseSeparableConv2d(2, 1, 1, bias=False, multiplier=3)
    layer.spatial.weight.data.copy_(torch.tensor([1.0, 2, 3, 10, 20, 30]).view(6, 1, 1, 1))
    layer.pointwise.weight.data.fill_(1)
    assert layer(torch.tensor([1.0, 100.0]).view(1, 2, 1, 1)).item() == 6 + 6000


@pytest.mark.parametrize("multiplier", [0, -1, 1.5, "2", True])
def test_a_multiplier_that_is_no_count_is_refused(multiplier):
    with pytest.raises(UnsupportedConv, match=f"multiplier={multiplier!r}"):
        DepthwiseSeparableConv2d(4, 4, 3, multiplier=multiplier)


def test_a_layer_that_was_pickled_without_a_multiplier_has_one_filter_a_channel():
    layer, x = DepthwiseSeparableConv2d(4, 6, 3), torch.randn(2, 4, 5, 5)
    old = copy.deepcopy(layer)
    del old.__dict__["multiplier"]
    assert repr(old) == repr(layer)
    with use_training_kernels_(old):
        torch.testing.assert_close(old(x), layer(x))
