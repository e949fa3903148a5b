"""BatchNorm, residual and activation for training against float64, in every layout; inside their maps."""

import os

import pytest
import torch
import torch.nn.functional as F

from leanconv.kernels.cpu.runtime import batch_norm_act as kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops import batch_norm_act as ops
from leanconv.ops.activations import ACTIVATIONS
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out
from tests.kernels.training_cases import assert_nan_in_channel_alone

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")
SIZES = [
    (2, 8, 8, 8),
    (4, 3, 8, 16),
    (2, 24, 4, 8),
    (1, 12, 4, 4),
    (2, 19, 5, 7),
    (1, 64, 33, 30),
    (3, 8, 130, 4),
    (5, 3, 1, 1),
    (1, 1, 1, 300),
    (4, 130, 3, 2),
    (2, 16, 40, 40),
]
CASES = [(act, False) for act in ops.KNOWN] + [(act, True) for act in ops.OF_RESIDUALS]
EPS = 1e-5


def drawn(size, dtype, added=False, mean=0.0, affine=True):
    """Map, gradient, residual, and the norm's weight and bias."""
    torch.manual_seed(0)
    x, grad, residual = torch.randn(size) + mean, torch.randn(size), torch.randn(size)
    vectors = (torch.randn(size[1]), torch.randn(size[1])) if affine else (None, None)
    return x.to(dtype), grad.to(dtype), residual.to(dtype) if added else None, vectors


def computed(x, grad, residual, vectors, act, around=lambda t: t):
    """Result, statistics, gradients of the map, of the norm and of the residual, in memory that held NaN."""
    masked = ops.keeps_result(residual, act)
    y, x_grad, residual_grad = (around(ops.new_map(x).fill_(torch.nan)) for _ in range(3))
    statistics, sums = (around(torch.full((2, x.shape[1]), torch.nan)) for _ in range(2))
    x, grad, residual = (None if t is None else around(readable(t)) for t in (x, grad, residual))
    vectors = [None if v is None else around(v) for v in vectors]
    kernels.forward(x, *vectors, residual, act, EPS, y, statistics)
    result, into = (y, residual_grad) if masked else (None, None)
    kernels.gradients(grad, x, *vectors, result, statistics, act, EPS, x_grad, into, sums)
    return y, statistics, x_grad, sums, residual_grad if masked else grad


def in_torch(x, grad, residual, vectors, act, dtype):
    """y, and the gradients in the order of `computed`."""
    x = x.to(dtype).requires_grad_()
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    vectors = [torch.full(x.shape[1:2], 1.0 - i) if v is None else v for i, v in enumerate(vectors)]
    vectors = [v.to(exact).requires_grad_() for v in vectors]
    residual = torch.zeros_like(x) if residual is None else residual.to(dtype)
    residual.requires_grad_()
    y = ACTIVATIONS[act](F.batch_norm(x, None, None, *vectors, True, 0.0, EPS) + residual)
    y.backward(grad.to(dtype))
    return y.detach(), x.grad, torch.stack([v.grad for v in vectors]), residual.grad


def compared(given, act, dtype, layout):
    x, grad, residual, vectors = given
    laid = [None if t is None else laid_out(t, layout) for t in (x, grad, residual)]
    y, _, *found = computed(*laid, vectors, act)
    exact, eager = (in_torch(*given, act, kind) for kind in (torch.float64, dtype))
    found = [y, *found] if residual is not None else [y, *found[:2]]
    for mine, plain, right in zip(found, eager, exact, strict=False):
        assert_no_worse(mine.double(), plain.double(), right, dtype=dtype)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice", "crop"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("act", "added"), [("relu", False), ("none", False), ("relu", True)])
@pytest.mark.parametrize("size", SIZES)
def test_no_farther_from_float64_than_pytorch(size, act, added, dtype, layout):
    compared(drawn(size, dtype, added), act, dtype, layout)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("act", "added"), CASES)
def test_every_activation(act, added, affine):
    compared(drawn((3, 24, 11, 13), torch.float32, added, affine=affine), act, torch.float32, "channels_last")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("act", "added"), [case for case in CASES if case[0] in ops.OF_RESIDUALS])
@pytest.mark.parametrize("size", [(2, 19, 4, 8), (1, 64, 16, 16), (4, 130, 2, 2)])
def test_exact_on_integers(size, act, added, dtype, monkeypatch):
    """Two values in turn, with a variance of 1 and eps of 3: every number on the way is a whole one, or a few bits."""
    monkeypatch.setattr("tests.kernels.runtime.test_batch_norm_act.EPS", 3.0)
    torch.manual_seed(0)
    n, c, h, w = size
    turns = 1.0 - 2.0 * ((torch.arange(h)[:, None] + torch.arange(w)) % 2)
    signs, centres = 1.0 - 2.0 * torch.randint(0, 2, (n, c, 1, 1)), torch.randint(-3, 4, (1, c, 1, 1)).float()
    x, grad = (centres + turns * signs).to(dtype), torch.randint(-2, 3, size).to(dtype)
    residual = torch.randint(-3, 4, size).to(dtype) if added else None
    vectors = (2.0 * torch.randint(1, 3, (c,)), torch.randint(-2, 3, (c,)).float())
    y, _, *found = computed(x, grad, residual, vectors, act)
    exact = in_torch(x, grad, residual, vectors, act, torch.float64)
    for mine, right in zip([y, *found] if added else [y, *found[:2]], exact, strict=False):
        assert torch.equal(mine, right.to(mine.dtype))


@pytest.mark.parametrize(("mean", "deviation"), [(128.0, 1.0), (1000.0, 1.0), (-3e4, 0.5)])
def test_a_mean_far_from_zero_leaves_the_variance_its_digits(mean, deviation):
    torch.manual_seed(0)
    x = (deviation * torch.randn(4, 9, 33, 31) + mean).contiguous(memory_format=torch.channels_last)
    y, statistics = ops.new_map(x), torch.empty(2, 9)
    kernels.forward(x, None, None, None, "none", EPS, y, statistics)
    variance, average = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics[0].double(), average, rtol=1e-7, atol=0)
    torch.testing.assert_close(statistics[1].double(), variance, rtol=1e-5, atol=0)
    exact = F.batch_norm(x.double(), None, None, None, None, True, 0.0, EPS)
    assert_no_worse(y.double(), F.batch_norm(x, None, None, None, None, True, 0.0, EPS).double(), exact)


def test_a_border_of_zeros_before_everything_else():
    """The pivot of the first run is far from the rest."""
    x = 128 + torch.randn(1, 8, 64, 64)
    x[:, :, :4] = 0
    x = x.contiguous(memory_format=torch.channels_last)
    y, statistics = ops.new_map(x), torch.empty(2, 8)
    kernels.forward(x, None, None, None, "none", EPS, y, statistics)
    torch.testing.assert_close(statistics[1].double(), x.double().var((0, 2, 3), correction=0), rtol=1e-5, atol=0)


def test_a_constant_map_has_no_variance():
    x = torch.full((2, 9, 30, 30), 0.1).contiguous(memory_format=torch.channels_last)
    y, statistics = ops.new_map(x), torch.empty(2, 9)
    kernels.forward(x, None, torch.full((9,), 0.5), None, "none", EPS, y, statistics)
    assert (statistics[1] == 0).all()
    torch.testing.assert_close(y, torch.full_like(y, 0.5))


@pytest.mark.parametrize("size", [(2, 70, 23, 29), (128, 16, 8, 8), (1, 8, 1, 5)])
@pytest.mark.parametrize("added", [True, False])
def test_the_same_bits_again_and_with_more_threads(size, added):
    given, threads = drawn(size, torch.float32, added), torch.get_num_threads()
    try:
        runs = []
        for each in (1, 1, 2, 2, 3):
            torch.set_num_threads(each)
            runs.append(computed(*given, "relu"))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_a_nan_reaches_its_channel_alone():
    x, grad, residual, vectors = drawn((2, 9, 4, 4), torch.float32, True)
    x[1, 3, 0, 0] = torch.nan
    y, statistics, x_grad, sums, _ = computed(x, grad, residual, vectors, "relu")
    assert_nan_in_channel_alone(3, (y, x_grad), sums, statistics)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, added, after):
    """Each operand between pages that must not be touched, in a child process."""
    cases = [(size, (*drawn(size, dtype, added), "relu")) for size in SIZES]
    assert_touches_nothing_else(cases, computed, after)
