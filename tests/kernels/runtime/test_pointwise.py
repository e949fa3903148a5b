"""1×1 convolutions for training against float64, in every layout; integers exactly; inside their maps."""

import os

import pytest
import torch
import torch.nn.functional as F

from leanconv.kernels.cpu.runtime import pointwise as kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops.depthwise import new_map
from tests.kernels.depthwise_cases import whole_numbers
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.runtime.repeated import assert_same_bits
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")
# N, C, H, W, O
SIZES = [
    (2, 4, 5, 7, 8),
    (1, 19, 33, 30, 13),
    (3, 8, 1, 1, 33),
    (1, 1, 1, 300, 1),
    (4, 31, 3, 2, 16),
    (2, 16, 13, 11, 48),
]


def drawn(size, dtype, draw=torch.randn):
    torch.manual_seed(0)
    n, c, h, w, o = size
    x, grad, weight, bias = draw((n, c, h, w)), draw((n, o, h, w)), draw((o, c)), draw((o,))
    return x.to(dtype), grad.to(dtype), weight, bias


def computed(x, grad, weight, bias, around=lambda t: t):
    """Result, gradients of the data, of weights and bias, in memory that held NaN."""
    y, found = (around(new_map(x, t.shape).fill_(torch.nan)) for t in (grad, x))
    sums = around(torch.full_like(weight, torch.nan)), around(torch.full_like(bias, torch.nan))
    x, grad = around(readable(x)), around(readable(grad))
    weight, bias = around(weight), around(bias)
    kernels.forward(x, weight, bias, y)
    kernels.forward(grad, weight.t(), None, found)
    kernels.weight_gradient(grad, x, *sums)
    return y, found, *sums


def in_torch(x, grad, weight, bias, dtype):
    x, weight, bias = (t.to(dtype).requires_grad_() for t in (x, weight, bias))
    y = F.conv2d(x, weight[:, :, None, None], bias)
    y.backward(grad.to(dtype))
    return y.detach(), x.grad, weight.grad, bias.grad


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice", "crop"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_no_farther_from_float64_than_pytorch(size, dtype, layout):
    x, grad, weight, bias = drawn(size, dtype)
    exact, eager = in_torch(x, grad, weight, bias, torch.float64), in_torch(x, grad, weight, bias, dtype)
    found = computed(laid_out(x, layout), laid_out(grad, layout), weight, bias)
    for ours, plain, right in zip(found, eager, exact, strict=True):
        assert_no_worse(ours.double(), plain.double(), right, dtype=dtype)


@pytest.mark.parametrize("size", SIZES)
def test_integers_are_exact(size):
    given = drawn(size, torch.float32, whole_numbers(7))
    for ours, right in zip(computed(*given), in_torch(*given, torch.float64), strict=True):
        assert torch.equal(ours.double(), right)


def test_the_same_bits_again_and_with_more_threads():
    given = drawn((2, 20, 23, 29, 30), torch.float32)
    assert_same_bits(lambda: computed(*given))


def test_a_nan_reaches_its_pixel_alone():
    x, grad, weight, bias = drawn((2, 5, 4, 4, 9), torch.float32)
    x[1, 3, 2, 1] = torch.nan
    y, found, sums, bias_sums = computed(x, grad, weight, bias)
    assert y.isnan().sum() == 9
    assert y[1, :, 2, 1].isnan().all()
    assert sums[:, 3].isnan().all()
    assert sums.isnan().sum() == 9
    assert not found.isnan().any()
    assert not bias_sums.isnan().any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, after):
    """Each operand between pages that must not be touched, in a child process."""
    cases = [(size, drawn(size, dtype)) for size in SIZES]
    assert_touches_nothing_else(cases, computed, after)
