"""The spatial bottleneck against its three steps as plain loops over pixels."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.deploy.export import export
from leanconv.errors import UnsupportedConv
from leanconv.nn import SpatialBottleneckConv2d


def literal(layer, x):
    """Each low-resolution pixel reads the pixels around its r×r cell, and writes to them, scalar kernel by kernel."""
    r, (n, c, h, w) = layer.ratio, x.shape
    high, wide = -(-h // r), -(-w // r)
    down, up = layer.down.weight[:, 0], layer.up.weight[:, 0]
    reach_down, reach_up = (r - 1, r // 2) if layer.overlap else (0, 0)
    canvas = torch.zeros(n, c, high * r + 2 * r, wide * r + 2 * r, dtype=x.dtype)
    canvas[..., r : r + h, r : r + w] = x
    out = torch.zeros(n, layer.out_channels, high * r + 2 * r, wide * r + 2 * r, dtype=x.dtype)
    for p in range(high):
        for q in range(wide):
            top, left = r + p * r - reach_down, r + q * r - reach_down
            u = (canvas[..., top : top + down.shape[1], left : left + down.shape[2]] * down).sum((2, 3))
            v = u @ layer.pointwise.weight[..., 0, 0].T
            top, left = r + p * r - reach_up, r + q * r - reach_up
            out[..., top : top + up.shape[1], left : left + up.shape[2]] += v[..., None, None] * up
    y = out[..., r : r + h, r : r + w] + layer.up.bias[:, None, None]
    return y + x if layer.residual and c == layer.out_channels else y


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (1, 2), (4, 5)])
@pytest.mark.parametrize("options", [{}, {"ratio": 3}, {"overlap": True}, {"ratio": 4, "overlap": True}])
@pytest.mark.parametrize(("o", "residual"), [(6, True), (6, False), (5, True)])
@torch.no_grad()
def test_equals_the_loop(size, options, o, residual):
    layer = SpatialBottleneckConv2d(6, o, 3, padding=1, residual=residual, dtype=torch.double, **options)
    layer.up.bias.normal_()
    x = torch.randn(2, 6, *size, dtype=torch.double)
    torch.testing.assert_close(layer(x), literal(layer, x))


def test_ratio_one_with_unit_kernels_is_a_pointwise_convolution():
    layer = SpatialBottleneckConv2d(4, 6, 3, padding=1, ratio=1)
    with torch.no_grad():
        layer.down.weight.fill_(1)
        layer.up.weight.fill_(1)
    x = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.pointwise.weight, layer.up.bias))


def test_it_repeats_every_ratio_pixels_and_so_is_no_convolution():
    layer = SpatialBottleneckConv2d(4, 4, 3, padding=1, bias=False, dtype=torch.double)
    x = torch.randn(1, 4, 16, 16, dtype=torch.double)
    y = layer(x)
    torch.testing.assert_close(layer(x.roll(2, -1)), y.roll(2, -1))
    assert not torch.allclose(layer(x.roll(1, -1))[..., 4:-4], y.roll(1, -1)[..., 4:-4])


def test_what_changes_the_size_is_refused():
    with pytest.raises(UnsupportedConv, match=r"padding=\(0, 0\) changes the size of the map; type padding=\(1, 1\)"):
        SpatialBottleneckConv2d(4, 4, 3)
    with pytest.raises(UnsupportedConv, match="stride"):
        SpatialBottleneckConv2d(4, 4, 3, 2, 1)
    with pytest.raises(UnsupportedConv, match="ratio=3 is odd"):
        SpatialBottleneckConv2d(4, 4, 3, padding=1, ratio=3, overlap=True)


def test_state_dict_keys_are_api():
    keys = ["down.weight", "pointwise.weight", "up.weight", "up.bias"]
    assert list(SpatialBottleneckConv2d(4, 4, 3, padding=1).state_dict()) == keys


@pytest.mark.parametrize(
    ("options", "size"), [({}, (12, 24)), ({"ratio": 3}, (11, 25)), ({"ratio": 4, "overlap": True}, (12, 24))]
)
def test_exported_with_open_sizes_it_takes_every_one(options, size, tmp_path):
    """`export` holds the file against the layer at sizes that the ratio divides and at others."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(library)
    layer = SpatialBottleneckConv2d(4, 6, 3, padding=1, **options).eval()
    export(layer, torch.randn(2, 4, *size), tmp_path / "layer.onnx", dynamic=("batch", "height", "width"))
