"""PSConv against its definition: one dilated convolution for each (filter, channel) pair, summed in a loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.nn import PSConv2d


def rate(o, i, filters, channels, parts, d, layout):
    """D(o, i) within one group, as the specification's section 12 says it."""
    if layout == "interleaved":
        phase = (i - o) % parts
    else:
        phase = (i // (channels // parts) - o // (filters // parts)) % parts
    return {0: d, parts // 2: 2 * d}.get(phase, 1)


def literal(x, taps, bias, stride, extra, groups, **options):
    """The double loop over pairs; `taps` is `O C/G R S`, `extra` the padding beyond the centred one."""
    o, c = taps.shape[:2]
    k, filters = taps.shape[-1], o // groups
    out = []
    for n in range(o):
        y = 0
        for i in range(c):
            d = rate(n % filters, i, filters, c, **options)
            channel = x[:, n // filters * c + i, None]
            y = y + F.conv2d(channel, taps[n : n + 1, i : i + 1], None, stride, d * (k - 1) // 2 + extra, d)
        out.append(y + bias[n])
    return torch.cat(out, 1)


CASES = [
    (8, 12, 3, 1, 1, 1, 4, 2, "block"), (8, 12, 3, 1, 1, 1, 4, 2, "interleaved"), (8, 8, 3, 2, 1, 1, 4, 1, "block"),
    (16, 24, 3, 2, 1, 2, 4, 2, "block"), (16, 8, 3, 1, 1, 2, 4, 2, "interleaved"), (6, 12, 3, 1, 0, 1, 6, 2, "block"),
    (12, 6, 3, 1, 3, 1, 6, 2, "interleaved"), (4, 6, 5, 1, 2, 1, 2, 2, "block"), (8, 8, 1, 1, 0, 1, 4, 2, "block"),
    (8, 8, 3, 1, 1, 2, 2, 3, "interleaved"),
]  # fmt: skip


@pytest.mark.parametrize(("c", "o", "k", "stride", "padding", "groups", "parts", "d", "layout"), CASES)
def test_equals_one_convolution_per_pair(c, o, k, stride, padding, groups, parts, d, layout):
    options = {"parts": parts, "layout": layout}
    layer = PSConv2d(c, o, k, stride, padding, groups=groups, base_dilation=d, dtype=torch.double, **options)
    taps, x = torch.randn(o, c // groups, k, k, dtype=torch.double), torch.randn(2, c, 9, 8, dtype=torch.double)
    layer.load_dense_(taps)
    expected = literal(x, taps, layer.bias, stride, padding - (k - 1) // 2, groups, d=d, **options)
    torch.testing.assert_close(layer(x), expected)
    wide = (layer.dense_weight().shape[-1] - 1) // 2 + padding - (k - 1) // 2
    torch.testing.assert_close(F.conv2d(x, layer.dense_weight(), layer.bias, stride, wide, 1, groups), expected)


def reference(x, gwconv, shift, dense, parts, d):
    """The authors' forward for parts = 4, and their mask: a dense rate-1 convolution with half of its blocks zero."""
    o, c = dense.shape[:2]
    mask = torch.ones_like(dense)
    for i in range(parts):
        for a in (i, (i + parts // 2) % parts):
            mask[a * (o // parts) : (a + 1) * (o // parts), i * (c // parts) : (i + 1) * (c // parts)] = 0
    first, second = x.chunk(2, 1)
    shifted = F.conv2d(torch.cat([second, first], 1), shift, None, 1, 2 * d, 2 * d, parts)
    return F.conv2d(x, gwconv, None, 1, d, d, parts) + F.conv2d(x, dense * mask, None, 1, 1) + shifted


def test_loads_the_authors_state_dict():
    gwconv, shift = torch.randn(12, 2, 3, 3).double(), torch.randn(12, 2, 3, 3).double()
    dense, biases = torch.randn(12, 8, 3, 3).double(), torch.randn(3, 12).double()
    layer = PSConv2d(8, 12, 3, padding=1, dtype=torch.double)
    layer.load_state_dict(
        {
            "gwconv.weight": gwconv,
            "gwconv.bias": biases[0],
            "gwconv_shift.weight": shift,
            "gwconv_shift.bias": biases[1],
            "conv.weight": dense,
            "conv.bias": biases[2],
        }
    )
    x = torch.randn(2, 8, 11, 9, dtype=torch.double)
    expected = reference(x, gwconv, shift, dense, 4, 2) + biases.sum(0)[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_all_rates_one_is_the_standard_convolution():
    dense = nn.Conv2d(8, 12, 3, padding=1, dtype=torch.double)
    layer = PSConv2d(8, 12, 3, padding=1, dtype=torch.double)
    layer.load_dense_(dense.weight)
    layer.bias.data.copy_(dense.bias)
    for conv in (layer.gwconv, layer.gwconv_shift):
        conv.dilation = conv.padding = (1, 1)
    x = torch.randn(1, 8, 6, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), dense(x))


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_a_pass_that_initialises_every_convolution_keeps_the_operator(layout):
    layer = PSConv2d(8, 8, 3, padding=1, layout=layout, dtype=torch.double)
    live = layer.dense_weight() != 0
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    assert ((layer.dense_weight() != 0) == live).all()
    assert live.sum() == 8 * 8 * 9
    assert sum(p.numel() for p in layer.parameters()) == 8 * 8 * 9 + 8


@pytest.mark.parametrize("layout", ["block", "interleaved"])
def test_projection_is_the_nearest(layout):
    """No kernel of the family is nearer: the residual is zero at every live tap."""
    dense = nn.Conv2d(8, 8, 3, padding=1, dtype=torch.double)
    layer = PSConv2d.from_conv(dense, layout=layout)
    live = layer.dense_weight() != 0
    assert layer.project_(dense)
    residual = layer.dense_weight() - F.pad(dense.weight, (3, 3, 3, 3))
    assert residual[live].abs().max() == 0
    assert residual.abs().max() > 0


def test_one_fan_for_every_rate():
    layer = PSConv2d(64, 64, 3)
    spread = [conv.weight.std().item() for conv in (layer.gwconv, layer.gwconv_shift, layer.conv)]
    dense = nn.Conv2d(64, 64, 3).weight.std().item()
    assert all(0.97 < value / dense < 1.03 for value in spread)


def test_odd_parts_are_refused():
    with pytest.raises(UnsupportedConv, match="parts=3 must be even"):
        PSConv2d(6, 6, 3, parts=3)
    with pytest.raises(UnsupportedConv, match="parts=4 does not divide in_channels=2 and out_channels=4 of each group"):
        PSConv2d(4, 8, 3, groups=2)


def test_state_dict_keys_are_api():
    keys = ["bias", "gwconv.weight", "gwconv_shift.weight", "conv.weight"]
    assert list(PSConv2d(8, 8, 3).state_dict()) == keys
    assert list(PSConv2d(8, 8, 3, bias=False, parts=2).state_dict()) == keys[1:3]
