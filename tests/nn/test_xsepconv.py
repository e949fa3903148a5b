"""XSepConv against its three steps written out, and against the kernels that its linear form composes to."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.errors import UnsupportedConv
from leanconv.nn import XSepConv2d
from leanconv.nn.xsepconv import DIRECTIONS


def build(c=6, k=5, stride=1, **options):
    return XSepConv2d(c, c, k, stride, k // 2, groups=c, dtype=torch.double, **options)


def shifted(x, i, j, left, top):
    """x[h + i - top, w + j - left], zero outside: what tap (i, j) of the padded 2×2 reads."""
    h, w = x.shape[-2:]
    canvas = torch.zeros(*x.shape[:2], h + 4, w + 4, dtype=x.dtype)
    canvas[..., 2 : 2 + h, 2 : 2 + w] = x
    return canvas[..., 2 + i - top : 2 + i - top + h, 2 + j - left : 2 + j - left + w]


def literal(layer, x, stride, directions):
    """`directions`: for each channel its (left, right, top, bottom)."""
    t = torch.zeros_like(x)
    for c, (left, _, top, _) in enumerate(directions):
        for i, j in itertools.product(range(2), range(2)):
            t[:, c] += layer.square.weight[c, 0, i, j] * shifted(x, i, j, left, top)[:, c]
    t = layer.act1(layer.norm1(t))
    k, c = layer.kernel_size[0], x.shape[1]
    u = layer.act2(layer.norm2(F.conv2d(t, layer.row.weight, None, (1, stride), (0, k // 2), 1, c)))
    return layer.act3(layer.norm3(F.conv2d(u, layer.column.weight, layer.column.bias, (stride, 1), (k // 2, 0), 1, c)))


def randomised(layer):
    with torch.no_grad():
        for norm in layer.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.bias.normal_()
    return layer.eval()


@pytest.mark.parametrize("k", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "options", [{}, {"linear": True}, {"act": "hardswish", "block": True}, {"norm_between": False}]
)
@torch.no_grad()
def test_equals_the_definition(k, stride, options):
    x = torch.randn(2, 6, 9, 8, dtype=torch.double)
    for index in range(5):
        layer = randomised(build(6, k, stride, layer_index=index, **options))
        direction = DIRECTIONS[("RB", "LT", "LB", "RT")[index % 4]]
        torch.testing.assert_close(layer(x), literal(layer, x, stride, [direction] * 6))
        assert layer(x).shape[-2:] == (-(-9 // stride), -(-8 // stride))


@pytest.mark.parametrize(("c", "sizes"), [(8, (2, 2, 2, 2)), (6, (2, 2, 1, 1)), (7, (2, 2, 2, 1)), (3, (1, 1, 1, 0))])
@torch.no_grad()
def test_the_channel_policy_pads_a_quarter_each_way(c, sizes):
    layer, x = randomised(build(c, pad_policy="channel")), torch.randn(2, c, 7, 6, dtype=torch.double)
    directions = [DIRECTIONS[d] for d, n in zip(("RB", "LT", "LB", "RT"), sizes) for _ in range(n)]
    torch.testing.assert_close(layer(x), literal(layer, x, 1, directions))
    single = randomised(build(c, pad_policy="single", layer_index=1))
    torch.testing.assert_close(single(x), literal(single, x, 1, [DIRECTIONS["RB"]] * c))


def test_four_layers_drift_nowhere():
    """A 2×2 average in each of the four directions: the centre of mass of a point stays where it was."""
    x = torch.zeros(1, 1, 11, 11, dtype=torch.double)
    x[..., 5, 5] = 1
    rows = torch.arange(11, dtype=torch.double)
    for index in range(4):
        layer = build(1, 3, linear=True, bias=False, layer_index=index)
        with torch.no_grad():
            layer.square.weight.fill_(0.25)
            for conv in (layer.row, layer.column):
                conv.weight.zero_()
                conv.weight.flatten()[1] = 1
        x = layer(x).detach()
        drift = [((x.sum(axis) * rows).sum() - 5).item() for axis in ((0, 1, 3), (0, 1, 2))]
        assert max(map(abs, drift)) < (1e-12 if index in (1, 3) else 0.6)  # cancelled after every pair


def delta(layer, left, top):
    with torch.no_grad():
        for conv in (layer.square, layer.row, layer.column):
            conv.weight.zero_()
        layer.square.weight[..., top, left] = 1
        layer.row.weight[..., layer.kernel_size[1] // 2] = 1
        layer.column.weight[:, :, layer.kernel_size[0] // 2] = 1
    return layer


@pytest.mark.parametrize("index", range(4))
def test_delta_kernels_are_the_identity(index):
    left, _, top, _ = list(DIRECTIONS.values())[index]
    layer = delta(build(linear=True, bias=False, layer_index=index), left, top)
    x = torch.randn(2, 6, 7, 8, dtype=torch.double)
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)


@pytest.mark.parametrize("stride", [1, 2])
def test_without_the_square_it_is_a_rank_one_kernel_everywhere(stride):
    layer = build(6, 5, stride, linear=True)
    with torch.no_grad():
        layer.square.weight.zero_()
        layer.square.weight[..., 0, 0] = 1  # RB: the pixel itself
    x = torch.randn(2, 6, 9, 8, dtype=torch.double)
    expected = F.conv2d(x, layer.rank_one_weight(), layer.column.bias, stride, 2, 1, 6)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("k", [3, 5, 7, 9])
@pytest.mark.parametrize("index", range(4))
def test_with_the_square_the_composition_is_exact_but_for_a_border(k, index):
    layer, x = build(4, k, linear=True, layer_index=index), torch.randn(1, 4, 24, 23, dtype=torch.double)
    kernel, reach = layer.composed_weight(), k // 2
    assert (kernel != 0).sum() == 4 * (k + 1) ** 2
    one, chain = F.conv2d(x, kernel, layer.column.bias, 1, reach + 1, 1, 4), layer(x)
    left, right, top, bottom = (reach * (1 - side) for side in list(DIRECTIONS.values())[index])
    inside = (..., slice(top, 24 - bottom), slice(left, 23 - right))
    torch.testing.assert_close(chain[inside], one[inside])
    wrong = (chain - one).abs().sum((0, 1)) > 1e-9
    assert wrong.sum() == 24 * 23 - (24 - reach) * (23 - reach)


def test_the_composition_of_the_channel_policy():
    layer, x = build(6, 5, linear=True, pad_policy="channel"), torch.randn(1, 6, 12, 12, dtype=torch.double)
    one = F.conv2d(x, layer.composed_weight(), layer.column.bias, 1, 3, 1, 6)
    torch.testing.assert_close(layer(x)[..., 2:-2, 2:-2], one[..., 2:-2, 2:-2])


@pytest.mark.parametrize(("k", "params", "macs"), [(5, 896, 2_809_856), (7, 1_152, 3_612_672)])
def test_the_specifications_figures(k, params, macs):
    from leanconv.spec import ConvSpec

    spec = ConvSpec.of(64, 64, k, 1, k // 2, groups=64, bias=False, h=56, w=56)
    assert (XSepConv2d.cost(spec).params, XSepConv2d.cost(spec).macs) == (params, macs)


def test_what_the_paper_replaces():
    from leanconv.spec import ConvSpec

    replaced = {
        (k, s): XSepConv2d.why_keep(ConvSpec.of(8, 8, k, s, k // 2, groups=8)) is None
        for k in (3, 5, 7)
        for s in (1, 2)
    }
    assert replaced == {(3, 1): False, (3, 2): False, (5, 1): True, (5, 2): False, (7, 1): True, (7, 2): True}


def test_refusals():
    with pytest.raises(UnsupportedConv, match="groups=1 is not depthwise"):
        XSepConv2d(4, 4, 5, padding=2)
    with pytest.raises(UnsupportedConv, match=r"padding=\(0, 0\) is not centred; type padding=\(2, 2\)"):
        XSepConv2d(4, 4, 5, groups=4)


def test_state_dict_keys_are_api():
    assert [k for k, _ in build().named_parameters()] == [
        "square.weight",
        "row.weight",
        "column.weight",
        "column.bias",
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "norm2.bias",
    ]
