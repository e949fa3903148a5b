"""The gated sum, upsampling and pooling against float64."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.kernels.cpu import bind
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.pool import MaxPool, max_pool
from leanconv.ops.upsample import Upsample, upsample
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.usefixtures("halide")
LAYOUTS = ["nchw", "channels_last", "slice", "crop"]
QUICK = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SIZES = (st.integers(0, 3), st.integers(1, 20), st.integers(1, 20), st.sampled_from(LAYOUTS))
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def double(tensors):
    return [t.double() for t in tensors]


def _bound(form, weights):
    return form, weights, bind(form, weights)


@pytest.fixture(
    scope="module",
    params=[
        GatedSum((5, 6), 23, bias=True, affine=True, activation="relu", average=True),
        GatedSum((16,), 32),
        GatedSum((1,), 1),
    ],
    ids=["splconv", "plain", "one"],
)
def gated(request):
    torch.manual_seed(0)
    form, o = request.param, request.param.out_channels
    weights = [torch.randn(o, sum(form.channels)) / sum(form.channels)] + [torch.randn(o)] * form.bias
    weights += [torch.randn(o), torch.randn(o)] * form.affine
    return {dtype: _bound(form, [w.to(dtype) for w in weights]) for dtype in DTYPES}


@torch.no_grad()
@EACH_DTYPE
@QUICK
@given(*SIZES)
def test_gated_sum(gated, dtype, n, h, w, layout):
    form, weights, bound = gated[dtype]
    a = laid_out(torch.randn(n, form.out_channels, h, w).to(dtype), layout)
    inputs = [laid_out(torch.randn(n, c, h, w).to(dtype), layout) for c in form.channels]
    y, means = bound(a, inputs, averaged(a), [averaged(x) for x in inputs])
    exact, exact_means = gated_pointwise(a.double(), double(inputs), double(weights), form)
    eager, eager_means = gated_pointwise(a, inputs, weights, form)
    assert_no_worse(y, eager, exact, 3.0, dtype)  # the gate's exponential is ours
    assert_no_worse(means, eager_means, exact_means, 4.0, dtype)


@pytest.fixture(
    scope="module",
    params=[Upsample((6, 3), 5, bias=True, activation="relu", average=True), Upsample((16,), 8, 3)],
    ids=["two_inputs", "by_three"],
)
def ups(request):
    torch.manual_seed(0)
    form = request.param
    k, o = form.factor, form.out_channels
    weights = [torch.randn(sum(form.channels), o, k, k)] + [torch.randn(o)] * form.bias
    return {dtype: _bound(form, [w.to(dtype) for w in weights]) for dtype in DTYPES}


@torch.no_grad()
@EACH_DTYPE
@QUICK
@given(*SIZES)
def test_upsample(ups, dtype, n, h, w, layout):
    form, weights, bound = ups[dtype]
    inputs = [laid_out(torch.randn(n, c, h, w).to(dtype), layout) for c in form.channels]
    y, means = bound(inputs)
    exact, exact_means = upsample(double(inputs), double(weights), form)
    eager, eager_means = upsample(inputs, weights, form)
    assert y.dtype == dtype
    assert_no_worse(y, eager, exact, dtype=dtype)
    assert_no_worse(means, eager_means, exact_means, 4.0, dtype)


@pytest.fixture(
    scope="module",
    params=[
        MaxPool(19, average=True),
        MaxPool(32, (3, 3), (2, 2), (1, 1, 1, 1)),
        MaxPool(4, (5, 2), (1, 3), (2, 2, 1, 1)),
    ],
    ids=["2x2", "3x3", "5x2"],
)
def pooling(request):
    return request.param, bind(request.param, [])


@torch.no_grad()
@EACH_DTYPE
@QUICK
@given(*SIZES)
def test_max_pool(pooling, dtype, n, h, w, layout):
    form, bound = pooling
    if min(form.size(h, w)) < 1:
        return
    x = laid_out(torch.randn(n, form.channels, h, w).to(dtype), layout)
    y, means = bound(x)
    expected, expected_means = max_pool(x, form)
    assert torch.equal(y, expected)
    torch.testing.assert_close(means, expected_means)
