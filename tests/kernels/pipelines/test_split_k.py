"""Split-K against float64: at most twice PyTorch's error for any number of products."""

import pytest
import torch

from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.pipelines.gemm import split_k_length
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.separable import Separable, separable
from tests.kernels.tolerance import assert_no_worse

pytestmark = pytest.mark.usefixtures("halide")
AROUND = (1, 1, 1, 1)
PRODUCTS = [(257,), (509,), (1024,), (2310,), (300, 7, 410)]
SUMS = [
    (Grouped((200,), 48, (3, 3), padding=AROUND), "direct"),  # split by single taps
    (Grouped((64,), 48, (3, 3), padding=AROUND), "direct"),  # split by rows of taps
    (Grouped((300,), 48, (3, 3), padding=AROUND), "direct"),  # split by channels too
    (Grouped((33,), 48, (7, 5), (2, 1), padding=(3, 3, 2, 2)), "direct"),
    (Grouped((400,), 48, (3, 3), (2, 2), padding=AROUND, groups=2, interleaved=True, pointwise=True), "direct"),
    (Grouped((640,), 640, (3, 3), padding=AROUND, groups=4, project=40), "direct"),
    (Grouped((640,), 640, (3, 3), padding=AROUND, groups=4, project=40), "winograd"),
    (Grouped((640,), 64, (3, 3), padding=AROUND, groups=4, pointwise=True), "winograd"),
    (Grouped((300,), 48, (3, 3), padding=AROUND), "winograd"),
]


@torch.no_grad()
@pytest.mark.parametrize("channels", PRODUCTS, ids=str)
def test_a_1x1(channels):
    torch.manual_seed(0)
    form, weight = Separable(channels, (), 48), torch.randn(48, sum(channels), 1, 1)
    x = torch.randn(2, sum(channels), 9, 23)
    parts = x.split(channels, 1)
    exact = separable([p.double() for p in parts], [weight.double()], form)[0]
    assert_no_worse(bind(form, [weight])(parts)[0], separable(parts, [weight], form)[0], exact)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "width"), [(200, 48), (240, 40), (256, 128)])
def test_a_1x1_in_two_parts(channels, width):
    """Compared with two convolutions of half the channels: PyTorch's own split depends on the machine."""
    for seed in range(8):
        torch.manual_seed(seed)
        form = Separable((channels,), (), width)
        weight, x = torch.randn(width, channels, 1, 1), torch.randn(1, channels, 7, 8)
        exact = separable([x.double()], [weight.double()], form)[0]
        fused = bind(form, [weight])([x])[0]
        halves = sum(map(torch.conv2d, x.split(channels // 2, 1), weight.split(channels // 2, 1)))
        assert (fused - exact).abs().max() <= 2 * (halves - exact).abs().max()


@torch.no_grad()
@pytest.mark.parametrize(("form", "method"), SUMS, ids=str)
def test_sums_of_groups(form, method):
    torch.manual_seed(0)
    c, o = form.channels[0], form.out_channels
    weights = [torch.randn(o, c // form.groups, *form.kernel)]
    weights += [torch.randn(o, c)] if form.pointwise else []
    weights += [torch.randn(form.project, o)] if form.project else []
    x, bound = torch.randn(2, c, 9, 15), bind(form, weights)
    bound.method = method
    exact = grouped([x.double()], [w.double() for w in weights], form)[0]
    assert_no_worse(bound([x])[0], grouped([x], weights, form)[0], exact)


@pytest.mark.parametrize(
    ("depth", "length"), [(1, 1), (200, 100), (256, 128), (257, 129), (384, 192), (509, 255), (1024, 256)]
)
def test_parts_are_equal_if_the_depth_has_a_divisor(depth, length):
    assert split_k_length(depth) == length
