"""Kernel algebra against running both sides, in float64, with BatchNorm statistics that are not trivial."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.ops.fold import fold_bn_, pad_taps, scale_conv_, then_pointwise, ungroup


def random_norm(channels, **options):
    norm = nn.BatchNorm2d(channels, dtype=torch.double, **options).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 3)
    return norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("affine", [True, False])
def test_bn_folds(bias, groups, affine):
    conv, norm = nn.Conv2d(4, 8, 3, 2, 1, groups=groups, bias=bias, dtype=torch.double), random_norm(8, affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 4, 7, 6, dtype=torch.double)
    expected = norm(conv(x))
    fold_bn_(conv, norm)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (2, 4, 5, 6)),
        (nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 4, 5)),
        (nn.Linear(4, 6, bias=False), (2, 4)),
    ],
    ids=["1d in groups", "transposed in groups", "transposed 3d", "linear"],
)
def test_scale_and_shift_of_every_plain_layer(layer, shape):
    layer, x = layer.double(), torch.randn(shape, dtype=torch.double)
    before = layer(x)
    channels = before.shape[1]
    scale, shift = torch.randn(channels).double(), torch.randn(channels).double()
    across = (-1, *[1] * (before.dim() - 2))
    scale_conv_(layer, scale, shift)
    torch.testing.assert_close(layer(x), before * scale.view(across) + shift.view(across))


def test_a_norm_without_statistics_is_refused():
    with pytest.raises(ValueError, match="running statistics"):
        fold_bn_(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))


def test_ungroup():
    conv = nn.Conv2d(6, 4, 3, groups=2, bias=False, dtype=torch.double)
    x = torch.randn(1, 6, 5, 5, dtype=torch.double)
    torch.testing.assert_close(F.conv2d(x, ungroup(conv.weight, 2)), conv(x))


def test_then_pointwise():
    first, second = nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 4, 1, bias=False)
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(
        F.conv2d(x, then_pointwise(first.weight, second.weight)), second(first(x)), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pad_taps(stride):
    x, small = torch.randn(1, 2, 9, 9), torch.randn(3, 2, 1, 3)
    torch.testing.assert_close(
        F.conv2d(x, pad_taps(small, (5, 3)), stride=stride, padding=(2, 1)),
        F.conv2d(x, small, stride=stride, padding=(0, 1)),
    )
    with pytest.raises(ValueError, match="middle"):
        pad_taps(small, (4, 3))
