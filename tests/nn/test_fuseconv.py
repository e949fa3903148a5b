"""FuSeConv against its branches written out channel by channel, and against the cross-shaped dense convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.nn import FuSeConv2d


@torch.no_grad()
def hard(*arguments, **options):
    layer = FuSeConv2d(*arguments, **options, dtype=torch.double)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.normal_()
            module.bias.normal_()
        elif getattr(module, "bias", None) is not None:
            module.bias.normal_()
    return layer.eval()


def literal(layer, x):
    """Channel by channel: the row filter, the column filter, their BatchNorm, the activation; then the 1×1."""
    (r, s), full, z = layer.kernel_size, layer.variant == "full", []
    (dh, dw), stride = layer.dilation, layer.stride
    channels = layer.in_channels
    for conv, norm, padding, reads in (
        (layer.row, layer.norm_row, (0, dw * (s - 1) // 2), range(channels if full else channels // 2)),
        (layer.column, layer.norm_column, (dh * (r - 1) // 2, 0), range(0 if full else channels // 2, channels)),
    ):
        for i, c in enumerate(reads):
            y = F.conv2d(x[:, c : c + 1], conv.weight[i : i + 1], None, stride, padding, layer.dilation)[:, 0]
            if conv.bias is not None:
                y = y + conv.bias[i]
            if isinstance(norm, nn.BatchNorm2d):
                scale = norm.weight[i] / torch.sqrt(norm.running_var[i] + norm.eps)
                y = (y - norm.running_mean[i]) * scale + norm.bias[i]
            z.append(layer.act(y.clone()))
    z = torch.stack(z, 1)
    if layer.pointwise is None:
        return z
    y = torch.einsum("om,nmpq->nopq", layer.pointwise.weight[..., 0, 0], z)
    return y if layer.pointwise.bias is None else y + layer.pointwise.bias[:, None, None]


CASES = [
    ((8, 12, 3, 1, 1), {}),
    ((8, 12, 3, 2, 1), {"variant": "full"}),
    ((8, 12, 5, 2, 2), {"act": "relu6"}),
    ((8, 6, (3, 5), (1, 2), (2, 2), (2, 1)), {"variant": "full", "act": "hardswish", "bias": False}),
    ((7, 6, 3, 1, 1), {"variant": "full", "act": "relu"}),
    ((8, 8, 3, 2, 1), {"groups": 8}),
    ((8, 16, 3, 1, 1), {"groups": 8, "variant": "full"}),
]


@pytest.mark.parametrize(("arguments", "options"), CASES, ids=str)
def test_definition(arguments, options):
    layer, x = hard(*arguments, **options), torch.randn(2, arguments[0], 9, 10, dtype=torch.double)
    torch.testing.assert_close(layer(x), literal(layer, x))
    torch.testing.assert_close(layer.fold()(x), literal(layer, x))


@pytest.mark.parametrize("variant", ["half", "full"])
@pytest.mark.parametrize("stride", [1, 2])
def test_without_activation_it_is_a_dense_convolution_with_crosses(variant, stride):
    layer = hard(8, 6, 5, stride, 2, variant=variant)
    weight, x = layer.dense_weight(), torch.randn(2, 8, 9, 10, dtype=torch.double)
    cross = torch.zeros(5, 5, dtype=torch.bool)
    cross[2] = cross[:, 2] = True
    assert (weight[..., ~cross] == 0).all()
    bias = layer(torch.zeros(1, 8, 9, 10, dtype=torch.double))[0, :, 4, 4]  # inside, for the BatchNorms' shifts
    torch.testing.assert_close(layer(x), F.conv2d(x, weight, bias, stride, 2))
    assert layer.train().dense_weight() is None
    assert hard(8, 6, 5, stride, 2, variant=variant, act="relu").dense_weight() is None


def test_the_depthwise_form_and_its_hosts_norm_are_the_papers_branches():
    """BatchNorm is per channel: the host's, over the concatenation, is a BatchNorm per branch."""
    dense = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False, dtype=torch.double)
    layer, norm = FuSeConv2d.from_conv(dense), nn.BatchNorm2d(8, dtype=torch.double)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in layer.modules())
    x = torch.randn(4, 8, 7, 7, dtype=torch.double)
    a = F.batch_norm(layer.row(x[:, :4]), None, None, training=True)
    b = F.batch_norm(layer.column(x[:, 4:]), None, None, training=True)
    torch.testing.assert_close(norm(layer(x)), torch.cat([a, b], 1))


def test_projection_keeps_the_middle_row_or_column_and_no_other_is_nearer():
    dense = nn.Conv2d(8, 8, 5, 1, 2, groups=8, dtype=torch.double)
    layer = FuSeConv2d.from_conv(dense)
    assert layer.project_(dense)
    left = dense.weight - layer.dense_weight()
    assert (left[:4, :, 2] == 0).all()
    assert (left[4:, ..., 2] == 0).all()
    torch.testing.assert_close(left[:4, :, [0, 1, 3, 4]], dense.weight[:4, :, [0, 1, 3, 4]])
    assert not FuSeConv2d(4, 8, 3, 1, 1, groups=4, variant="full").project_(nn.Conv2d(4, 8, 3, 1, 1, groups=4))


def test_a_builder_puts_its_own_module_between():
    layer = FuSeConv2d(8, 6, 3, 1, 1, act="hardswish")
    layer.act = nn.Sequential(nn.Sigmoid(), layer.act)
    z = layer.row(x := torch.randn(1, 8, 5, 5)[:, :4])
    assert z.shape == x.shape
    assert layer(torch.randn(1, 8, 5, 5)).shape == (1, 6, 5, 5)


def test_refusals():
    for arguments, options, words in (
        ((7, 6, 3, 1, 1), {}, "in_channels=7 is odd"),
        ((8, 8, 3, 1, 1), {"groups": 8, "variant": "full"}, "type variant='half'"),
        ((8, 8, 3, 1, 1), {"groups": 2}, "groups=2"),
        ((8, 8, 3, 1, 1), {"groups": 8, "act": "relu"}, "type act=None"),
        ((8, 8, 3, 1, 1), {"act": "swish"}, "act='swish'"),
        ((8, 8, 3, 1, 0), {}, "type padding="),
        ((8, 8, 3, 1, 1), {"variant": "third"}, "variant='third'"),
    ):
        with pytest.raises(UnsupportedConv, match=words):
            FuSeConv2d(*arguments, **options)


def test_both_branches_alone_take_a_sample_without_its_batch():
    """No 1×1 follows, which would notice rows in the place of channels."""
    layer, x = FuSeConv2d(8, 16, 3, padding=1, groups=8, variant="full").eval(), torch.randn(1, 8, 8, 8)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
