"""SPLConv against equations 1 to 5 written out, and against the large kernel that its two stencils make."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.nn import SPLConv2d


def literal(layer, x):
    """Equations 1-5 from the layer's own weights, eval mode, stride 1, e = k = 3, rate 2."""
    c = layer.split[0]
    u = F.conv2d(x[:, :c], layer.stencil1.weight, padding=1, groups=c)
    v = F.conv2d(u, layer.stencil2.weight, padding=2, dilation=2, groups=c)
    a = F.conv2d(v, layer.pointwise.weight)
    norm = layer.norm
    a = (a - norm.running_mean[:, None, None]) / torch.sqrt(norm.running_var + norm.eps)[:, None, None]
    a = torch.relu(a * norm.weight[:, None, None] + norm.bias[:, None, None])
    b = F.conv2d(x[:, c:], layer.plain.weight, layer.plain.bias)
    weights = torch.softmax(torch.stack([a.mean((2, 3)), b.mean((2, 3))]), 0)[..., None, None]
    return weights[0] * a + weights[1] * b


@pytest.mark.parametrize("alpha", [0.5, 0.75, 0.25])
def test_equals_the_equations(alpha):
    layer = SPLConv2d(8, 6, 3, padding=1, alpha=alpha, dtype=torch.double).eval()
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 9, 7, dtype=torch.double)
    torch.testing.assert_close(layer(x), literal(layer, x))


@pytest.mark.parametrize(("e", "field"), [(None, 7), (2, 5)])
def test_receptive_field(e, field):
    layer = SPLConv2d(4, 4, 3, padding=1, dilated_kernel_size=e, dtype=torch.double)
    x = torch.zeros(1, 4, 15, 15, dtype=torch.double, requires_grad=True)
    layer.stencil2(layer.stencil1(x[:, :2]))[0, :, 7, 7].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()[:, 0]
    assert rows[-1] - rows[0] + 1 == field


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({}, (7, 7)), ({"dilated_kernel_size": 2}, (5, 5)), ({"rate": 3}, (9, 9)), ({"stride": 2}, (11, 11)),
        ({"dilation": 2, "padding": 2}, (9, 9)), ({"stride": (1, 2), "dilated_kernel_size": 2, "rate": 1}, (4, 5)),
        ({"depthwise": False}, (5, 5)), ({"dilated": False}, (3, 3)),
    ],
)  # fmt: skip
def test_two_stencils_are_one_large_kernel_inside(options, side):
    """Lemma L4: exact in the interior, different on a border ring; outside of it a shift of every stencil's padding."""
    layer = SPLConv2d(4, 4, 3, **{"padding": 1, **options}, dtype=torch.double)
    kernel = layer.composed_weight()
    assert kernel.shape == (2, 1, *side)
    x = torch.randn(1, 2, 26, 25, dtype=torch.double)
    chain = layer.stencil2(layer.stencil1(x))
    second = layer.stencil2.kernel_size[0] if layer.dilated else 1
    half = layer.rate * (second - 1) // 2  # of the second stencil, in pixels of its own input
    strides = layer.stride if layer.depthwise else (1, 1)
    pads = [(layer.padding[a] if layer.depthwise else 0) + strides[a] * half for a in (0, 1)]
    x = F.pad(x, (pads[1], pads[1] + side[1], pads[0], pads[0] + side[0]))
    single = F.conv2d(x, kernel, None, layer.stride, groups=2)[..., : chain.shape[2], : chain.shape[3]]
    ring = -(-layer.rate * (second - 1) // 2)
    inside = slice(ring, -ring if ring else None)
    torch.testing.assert_close(chain[..., inside, inside], single[..., inside, inside])
    assert torch.allclose(chain, single) == (layer.depthwise is False or layer.dilated is False)


def test_ablations_leave_a_stencil_out():
    x = torch.randn(1, 8, 9, 9)
    sizes = {
        name: sum(p.numel() for p in SPLConv2d(8, 8, 3, padding=1, **options).parameters())
        for name, options in {
            "both": {},
            "no depthwise": {"depthwise": False},
            "no dilated": {"dilated": False},
            "neither": {"depthwise": False, "dilated": False},
        }.items()
    }
    assert sizes["both"] - sizes["no depthwise"] == sizes["both"] - sizes["no dilated"] == 4 * 9
    assert sizes["both"] - sizes["neither"] == 8 * 9
    for options in ({"depthwise": False}, {"dilated": False}, {"depthwise": False, "dilated": False}):
        assert SPLConv2d(8, 8, 3, 2, 1, **options)(x).shape == (1, 8, 5, 5)


def test_the_uneven_extra_row_is_right_and_below():
    layer = SPLConv2d(2, 2, 3, padding=1, rate=1, dilated_kernel_size=2, dtype=torch.double)
    with torch.no_grad():
        layer.stencil2.weight.zero_()
        layer.stencil2.weight[..., 1, 1] = 1  # the lower right tap of the 2×2
    x = torch.arange(9.0, dtype=torch.double).view(1, 1, 3, 3)
    assert layer.stencil2(x)[0, 0].tolist() == [[4, 5, 0], [7, 8, 0], [0, 0, 0]]


def test_state_dict_keys_are_api():
    assert [k for k, _ in SPLConv2d(8, 8, 3, padding=1).named_parameters()] == [
        "stencil1.weight",
        "stencil2.weight",
        "pointwise.weight",
        "norm.weight",
        "norm.bias",
        "plain.weight",
        "plain.bias",
    ]
