"""Norms, ReLU and gated sum for training against float64, in every layout; inside their maps."""

import os
import sys

import pytest
import torch
import torch.nn.functional as F

from leanconv.kernels.cpu.runtime import normalized_gated_sum as kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops.gated_sum import gated_sum
from leanconv.ops.gated_sum_training import new_map
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.runtime.repeated import assert_same_bits
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out
from tests.kernels.training_cases import assert_nan_in_channel_alone

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")
SIZES = [(2, 19, 5, 7), (1, 64, 33, 30), (3, 8, 130, 4), (5, 3, 1, 1), (1, 1, 1, 300), (4, 130, 3, 2), (2, 16, 40, 40)]
EPS = [1e-5, 1e-3]


def drawn(size, dtype, both=True, mean=0.0):
    torch.manual_seed(0)
    a, b, grad = ((torch.randn(size) + mean).to(dtype) for _ in range(3))
    norms = [torch.randn(size[1]) for _ in range(4 if both else 2)]
    return a, b, grad, (*norms, *([] if both else [None, None]))


def computed(a, b, grad, norms, relu, around=lambda t: t):
    """Result, gate, statistics, gradients of both maps and of the norms, in memory that held NaN."""
    y, a_grad, b_grad = (around(new_map(a).fill_(torch.nan)) for _ in range(3))
    gate, statistics, sums = (around(torch.full(s, torch.nan)) for s in (a.shape[:2], (4, a.shape[1]), (4, a.shape[1])))
    a, b, grad = (around(readable(t)) for t in (a, b, grad))
    norms = tuple(None if each is None else around(each) for each in norms)
    kernels.forward(a, b, norms, relu, EPS, y, gate, statistics)
    kernels.gradients(grad, a, b, norms, gate, statistics, relu, EPS, a_grad, b_grad, sums)
    return y, gate, statistics, a_grad, b_grad, sums


def in_torch(a, b, grad, norms, relu, dtype):
    """y, both maps' gradients, and those of the norms in the order of `sums`."""
    a, b = a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    norms = [None if each is None else each.to(exact).requires_grad_() for each in norms]
    first = F.batch_norm(a, None, None, *norms[:2], True, 0.0, EPS[0])
    second = b if norms[2] is None else F.batch_norm(b, None, None, *norms[2:], True, 0.0, EPS[1])
    y = gated_sum(F.relu(first) if relu else first, second)
    y.backward(grad.to(dtype))
    found = [torch.zeros(a.shape[1]) if each is None else each.grad for each in norms]
    return y.detach(), a.grad, b.grad, torch.stack([each.to(exact) for each in found])


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice", "crop"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("relu", "both"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", SIZES)
def test_no_farther_from_float64_than_pytorch(size, relu, both, dtype, layout):
    a, b, grad, norms = drawn(size, dtype, both)
    exact, eager = in_torch(a, b, grad, norms, relu, torch.float64), in_torch(a, b, grad, norms, relu, dtype)
    y, _, _, a_grad, b_grad, sums = computed(*(laid_out(t, layout) for t in (a, b, grad)), norms, relu)
    for found, plain, right in zip((y, a_grad, b_grad, sums), eager, exact, strict=True):
        assert_no_worse(found.double(), plain.double(), right, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("relu", "both"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("size", [(2, 19, 4, 8), (1, 64, 16, 16), (4, 130, 2, 2)])
def test_exact_on_integers(size, relu, both, dtype, monkeypatch):
    """Two values in turn: means, variances and roots are whole. Averages alike, or the gate is 0 or 1."""
    torch.manual_seed(0)
    monkeypatch.setattr(sys.modules[__name__], "EPS", [3.0, 12.0])
    n, c, h, w = size
    turns = 1.0 - 2.0 * ((torch.arange(h)[:, None] + torch.arange(w)) % 2)
    signs = 1.0 - 2.0 * torch.randint(0, 2, (2, n, c, 1, 1))
    centres = torch.randint(-3, 4, (2, 1, c, 1, 1)).float()
    a, b = centres[0] + turns * signs[0], centres[1] + 2 * turns * signs[1]  # variances 1 and 4
    weight, bias = 2.0 * torch.randint(1, 4, (c,)), torch.randint(-2, 3, (c,)).float()
    first = weight[:, None, None] / 2 * turns + bias[:, None, None]
    average = (first.relu() if relu else first).mean((1, 2)) + 200.0 * torch.randint(-1, 2, (c,))
    if both:
        norms = (weight, bias, 4.0 * torch.randint(1, 4, (c,)), average)
    else:
        norms, b = (weight, bias, None, None), b - centres[1] + average[:, None, None]
    grad = torch.randint(-2, 3, size).float()
    a, b, grad = (t.to(dtype) for t in (a, b, grad))
    y, _, _, a_grad, b_grad, sums = computed(a, b, grad, norms, relu)
    exact = in_torch(a, b, grad, norms, relu, torch.float64)
    for found, right in zip((y, a_grad, b_grad, sums), exact, strict=True):
        assert torch.equal(found, right.to(found.dtype))


def test_a_mean_far_from_zero_leaves_the_variance_its_digits():
    a, b, _, norms = drawn((2, 9, 33, 31), torch.float32, mean=1000.0)
    y, gate, statistics = new_map(a), torch.empty(2, 9), torch.empty(4, 9)
    kernels.forward(readable(a), readable(b), norms, False, EPS, y, gate, statistics)
    variance, mean = torch.var_mean(a.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics[0].double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics[1].double(), variance, rtol=1e-5, atol=0)


def test_the_same_bits_again_and_with_more_threads():
    given = drawn((2, 70, 23, 29), torch.float32)
    assert_same_bits(lambda: computed(*given, True))


def test_a_nan_reaches_its_channel_alone():
    a, b, grad, norms = drawn((2, 9, 4, 4), torch.float32)
    a[1, 3, 0, 0] = torch.nan
    y, gate, statistics, a_grad, _, sums = computed(a, b, grad, norms, True)
    assert_nan_in_channel_alone(3, (y, gate[:, :, None], a_grad), sums, statistics)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, after):
    """Each operand between pages that must not be touched, in a child process."""
    cases = [(size, (*drawn(size, dtype), True)) for size in SIZES]
    assert_touches_nothing_else(cases, computed, after)
