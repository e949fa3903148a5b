"""The gated sum for training against float64, in every layout; inside its maps."""

import os

import pytest
import torch

from leanconv.kernels.cpu.runtime import gated_sum as kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops.gated_sum import gated_sum
from leanconv.ops.gated_sum_training import new_map
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.runtime.repeated import assert_same_bits
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")
SIZES = [(2, 19, 5, 7), (1, 64, 33, 30), (3, 8, 130, 4), (2, 3, 1, 1), (1, 1, 1, 300), (4, 130, 3, 2)]


def computed(a, b, grad, around=lambda t: t):
    """Result, gate, gradients of both maps, in memory that held NaN."""
    y, a_grad, b_grad = (around(new_map(a).fill_(torch.nan)) for _ in range(3))
    gate = around(torch.full(a.shape[:2], torch.nan))
    a, b, grad = (around(readable(t)) for t in (a, b, grad))
    kernels.forward(a, b, y, gate)
    kernels.gradients(grad, a, b, gate, a_grad, b_grad)
    return y, gate, a_grad, b_grad


def in_torch(a, b, grad, dtype):
    a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
    y = gated_sum(a, b)
    y.backward(grad.to(dtype))
    return y.detach(), a.grad, b.grad


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice", "crop"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_no_farther_from_float64_than_pytorch(size, dtype, layout):
    torch.manual_seed(0)
    a, b, grad = (torch.randn(size).to(dtype) for _ in range(3))
    exact, eager = in_torch(a, b, grad, torch.float64), in_torch(a, b, grad, dtype)
    y, _, a_grad, b_grad = computed(*(laid_out(t, layout) for t in (a, b, grad)))
    for found, plain, right in zip((y, a_grad, b_grad), eager, exact, strict=True):
        assert_no_worse(found.double(), plain.double(), right, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(2, 19, 4, 8), (1, 64, 16, 16), (4, 130, 2, 2)])
def test_exact_on_integers(size, dtype):
    """Averages alike, or so far apart that the gate is 0 or 1; as many pixels as a power of two."""
    torch.manual_seed(0)
    b, grad = (torch.randint(-3, 4, size).float() for _ in range(2))
    shift = 200.0 * torch.randint(-1, 2, (*size[:2], 1, 1))
    given = [t.to(dtype) for t in (b.flip(2, 3) + shift, b, grad)]
    y, _, a_grad, b_grad = computed(*given)
    for found, right in zip((y, a_grad, b_grad), in_torch(*given, torch.float64), strict=True):
        assert torch.equal(found, right.to(dtype))


def test_the_same_bits_again_and_with_more_threads():
    torch.manual_seed(0)
    given = [torch.randn(2, 70, 23, 29) for _ in range(3)]
    assert_same_bits(lambda: computed(*given))


def test_a_nan_reaches_its_sample_and_channel_alone():
    a, b, grad = (torch.randn(2, 9, 4, 4) for _ in range(3))
    a[1, 3, 0, 0] = torch.nan
    for found in computed(a, b, grad):
        assert found[1, 3].isnan().all()
        assert found.isnan().sum() == found[1, 3].numel()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, after):
    """Each operand between pages that must not be touched, in a child process."""
    torch.manual_seed(0)
    cases = [(size, [torch.randn(size).to(dtype) for _ in range(3)]) for size in SIZES]
    assert_touches_nothing_else(cases, computed, after)
