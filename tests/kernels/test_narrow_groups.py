"""Convolutions of narrow groups run as dense ones: the same results and gradients, by float64."""

import pytest
import torch
from torch import nn

from leanconv.kernels.narrow_groups import MOST_GROUPS, narrow
from leanconv.kernels.training import available, use_training_kernels_
from leanconv.nn import HetConv2d

needs_kernels = pytest.mark.skipif(available() is not None, reason=str(available()))


def conv(c, o, groups, **named):
    return nn.Conv2d(c, o, (3, 5), stride=(2, 1), padding=(2, 1), dilation=(1, 2), groups=groups, **named)


LAYERS = {
    "two groups": lambda: conv(6, 10, 2),
    "four groups": lambda: conv(4, 8, 4, bias=False),
    "reflected": lambda: conv(6, 4, 2, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(6, 4, (3, 5), padding="same", groups=2),
    "hetconv": lambda: HetConv2d(8, 12, 3, stride=2, padding=1, part=4),
    "hetconv, blocked": lambda: HetConv2d(6, 9, 5, padding=1, dilation=2, part=3, arrangement="blocked", bias=False),
    "hetconv, circular": lambda: HetConv2d(4, 6, 3, padding=2, part=2, padding_mode="circular"),
}


def gradients(layer, x):
    x = x.clone().requires_grad_()
    y = layer(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    return [y.detach(), *found]


@needs_kernels
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("size", [(2, 11, 13), (1, 7, 9)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_and_gradients_are_those_of_float64(kind, size, layout):
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    n, h, w = size
    x = torch.randn(n, layer.in_channels, h, w).contiguous(memory_format=layout)
    expected, before = gradients(layer.double(), x.double()), gradients(layer.float(), x)
    with use_training_kernels_(layer) as kernels:
        assert kernels.layers == [""]
        found = gradients(layer, x)
        again = gradients(layer, x)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients(layer, x), before, strict=True))  # as before
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-6 * float(b.abs().max()) * 8)


@needs_kernels
@pytest.mark.parametrize("layer", [conv(6, 10, 2), HetConv2d(8, 12, 3, padding=1)], ids=["conv", "hetconv"])
def test_compiles_as_one_graph_and_takes_autocast_and_one_sample(layer):
    x = torch.randn(2, layer.in_channels, 9, 11)
    with use_training_kernels_(layer):
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for a, b in zip(gradients(compiled, x), gradients(layer, x), strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(layer(x[0]), layer(x)[0])
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@needs_kernels
def test_wide_groups_stay():
    layers = nn.Sequential(
        conv(64, 64, 2),
        nn.Conv2d(8, 8, 1, groups=2),
        HetConv2d(128, 128, 3, arrangement="blocked"),
        HetConv2d(5, 7, 3, part=2, ragged=True),
    )
    assert use_training_kernels_(layers).layers == []
    assert not narrow(4 * MOST_GROUPS, 2 * MOST_GROUPS)  # too many times the multiplications
