"""Topological subdivisioning against its coordinates written out, output channel by output channel."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.nn import DepthwiseSeparableConv2d, TopologicalConv2d
from leanconv.nn.topological import nearly_equal_factors


def literal(layer, d, e, c):
    """The projection `O C`: w[j, q] at the coordinates (j_i·D_i // E_i + q_i) mod D_i, by row-major numbers."""
    dense = torch.zeros(math.prod(e), math.prod(d), dtype=torch.double)
    for o, j in enumerate(itertools.product(*map(range, e))):
        for n, q in enumerate(itertools.product(*map(range, c))):
            channel = 0
            for axis in range(len(d)):
                channel = channel * d[axis] + (j[axis] * d[axis] // e[axis] + q[axis]) % d[axis]
            dense[o, channel] += layer.weight[o, n]
    return dense


GRIDS = [
    ((4, 4), (4, 4), (2, 2)), ((4, 4), (4, 8), (2, 3)), ((2, 3), (4, 6), (2, 1)), ((4, 4), (2, 3), (3, 2)),
    ((3, 4), (5, 4), (2, 4)), ((8,), (12,), (3,)), ((2, 2, 3), (4, 2, 1), (2, 2, 3)), ((1, 7), (7, 1), (1, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("d", "e", "c"), GRIDS)
@pytest.mark.parametrize("geometry", [(1, 1, 0, 1), (1, 2, 0, 1), (1, 2, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2)])
@torch.no_grad()
def test_equals_the_definition(d, e, c, geometry):
    k, stride, padding, dilation = geometry
    sizes = math.prod(d), math.prod(e), k, stride, padding, dilation
    layer = TopologicalConv2d(*sizes, in_dims=d, out_dims=e, window=c, dtype=torch.double)
    layer.bias.normal_()
    x = torch.randn(2, sizes[0], 7, 6, dtype=torch.double)
    weight = literal(layer, d, e, c)[..., None, None]
    if k == 1:
        expected = F.conv2d(x, weight, layer.bias, stride, padding)
    else:
        filtered = F.conv2d(x, layer.spatial.weight, None, stride, padding, dilation, sizes[0])
        expected = F.conv2d(filtered, weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(("o", "dims"), [(16, (4, 4)), (32, (4, 8)), (12, (3, 4))])
def test_a_window_as_large_as_the_grid_is_the_plain_pair(o, dims):
    ours = TopologicalConv2d(16, o, 3, padding=1, window=(4, 4), dtype=torch.double)
    assert ours.grids == ((4, 4), dims, (4, 4))
    assert ours.projection().count_nonzero() == 16 * o
    theirs = DepthwiseSeparableConv2d(16, o, 3, padding=1, dtype=torch.double)
    with torch.no_grad():
        theirs.spatial.weight.copy_(ours.spatial.weight)
        theirs.pointwise.weight.copy_(ours.projection())
        theirs.pointwise.bias.copy_(ours.bias)
    x = torch.randn(1, 16, 6, 5, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x))


def test_defaults_are_the_specifications():
    layer = TopologicalConv2d(64, 128, 3, padding=1)
    assert layer.grids == ((8, 8), (8, 16), (4, 4))
    assert layer.distinct == 64  # two outputs share a window
    found = {n: nearly_equal_factors(n, 2) for n in (1, 2, 7, 12, 48, 96, 512)}
    assert found == {1: (1, 1), 2: (1, 2), 7: (1, 7), 12: (3, 4), 48: (6, 8), 96: (8, 12), 512: (16, 32)}
    assert nearly_equal_factors(64, 3) == (4, 4, 4)
    assert nearly_equal_factors(60, 3) == (3, 4, 5)
    assert TopologicalConv2d(7, 7, 1).grids[2] == (1, 3)
    assert TopologicalConv2d(6, 6, 1).grids[2] == (2, 2)


@pytest.mark.parametrize(("d", "c", "needed"), [((8, 8), (4, 4), 3), ((4, 6), (2, 4), 3), ((5, 3), (5, 2), 2)])
def test_reach_of_a_stack(d, c, needed):
    channels = math.prod(d)
    layer = TopologicalConv2d(channels, channels, 1, in_dims=d, out_dims=d, window=c)
    sees = (layer.projection()[..., 0, 0] != 0).double()
    assert (torch.matrix_power(sees, needed) > 0).all()
    assert not (torch.matrix_power(sees, needed - 1) > 0).all()


def test_projection_of_a_pointwise_layer_keeps_the_live_entries():
    dense = nn.Conv2d(16, 24, 1, dtype=torch.double)
    layer = TopologicalConv2d.from_conv(dense)
    assert layer.project_(dense)
    live = layer.projection() != 0
    torch.testing.assert_close(layer.projection()[live], dense.weight[live], rtol=0, atol=0)


def test_projection_of_a_spatial_layer_is_the_best():
    """Per channel the residual over the outputs that see it is the tail of their singular values."""
    dense = nn.Conv2d(6, 8, 3, padding=1, dtype=torch.double)
    layer = TopologicalConv2d.from_conv(dense)
    sees = layer.projection()[..., 0, 0] != 0
    assert layer.project_(dense)
    expected = 0
    for c in range(6):
        rows = dense.weight[:, c].flatten(1)
        expected += torch.linalg.svdvals(rows[sees[:, c]])[1:].square().sum() + rows[~sees[:, c]].square().sum()
    torch.testing.assert_close((layer.dense_weight() - dense.weight).square().sum(), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"in_dims": (2, 3)}, r"in_dims=\(2, 3\) has 6 places for in_channels=8"),
        ({"out_dims": (2, 5)}, r"out_dims=\(2, 5\) has 10 places for out_channels=12"),
        ({"window": (3, 3)}, r"window=\(3, 3\) is larger than in_dims=\(2, 4\)"),
        ({"in_dims": (2, 2, 2), "out_dims": (3, 4)}, "must have one length"),
        ({"window": 4}, r"window=4 must be whole numbers"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(UnsupportedConv, match=words):
        TopologicalConv2d(8, 12, 3, **options)


def test_state_dict_keys_are_api():
    assert list(TopologicalConv2d(8, 8, 3).state_dict()) == ["weight", "bias", "spatial.weight"]
    assert list(TopologicalConv2d(8, 8, 1, bias=False).state_dict()) == ["weight"]


def test_under_a_default_device_it_is_built_there():
    with torch.device("meta"):
        layer = TopologicalConv2d(16, 24, 3, padding=1)
    assert {t.device.type for t in [*layer.parameters(), *layer.buffers()]} == {"meta"}
