"""Depthwise convolutions with a 1×1 against float64, in every layout; integers exactly; inside their maps."""

import os
import random

import pytest
import torch
import torch.nn.functional as F

from leanconv.kernels.cpu.runtime import separable_branch as kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops.depthwise import new_map
from leanconv.ops.separable_branches import steps
from tests.kernels.depthwise_cases import whole_numbers
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.runtime.repeated import assert_same_bits
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")


def cases(seed, count):
    """Sizes N C H W, outputs, kernels of up to two stencils, and top, left and dilations of each."""
    draw, found = random.Random(seed), []
    channels, sides = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 40], [1, 2, 3, 5, 8, 13, 30]
    for _ in range(count):
        size = draw.choice([1, 2, 3]), draw.choice(channels), draw.choice(sides), draw.choice(sides)
        kernels, geometry = [], []
        for _ in range(draw.randint(0, 2)):
            kernel = draw.choice([(3, 3), (draw.randint(1, 5), draw.randint(1, 5)), (1, draw.randint(1, 9))])
            dilation = draw.randint(1, 3), draw.randint(1, 3)
            spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            kernels.append(kernel)
            geometry += [draw.randint(0, spans[0]), draw.randint(0, spans[1]), *dilation]
        found.append((size, draw.choice(channels[1:]), kernels, geometry))  # how far off one sum alone is, is luck
    return found


CASES = cases(0, 24)
IDS = [str(i) for i in range(len(CASES))]


def drawn(case, dtype, draw=torch.randn):
    torch.manual_seed(0)
    (n, c, h, w), o, sizes, _ = case
    x, grad, matrix, bias = draw((n, c, h, w)), draw((n, o, h, w)), draw((o, c)), draw((o,))
    return x.to(dtype), grad.to(dtype), [draw((c, 1, *kernel)) for kernel in sizes], matrix, bias


def computed(case, x, grad, stencils, matrix, bias, around=lambda t: t):
    """Result, gradients of the data, of each stencil, of matrix and bias, in memory that held NaN."""
    y, found = (around(new_map(x, t.shape).fill_(torch.nan)) for t in (grad, x))
    sums = [around(torch.full_like(t, torch.nan)) for t in (*stencils, matrix, bias)]
    x, grad, matrix, bias = around(readable(x)), around(readable(grad)), around(matrix), around(bias)
    stencils = [around(each) for each in stencils]
    kernels.forward(x, stencils, matrix, bias, case[3], y)
    kernels.gradients(grad, x, stencils, matrix, case[3], found, sums)
    return y, found, *sums


def in_torch(case, x, grad, stencils, matrix, bias, dtype):
    leaves = x, *stencils, matrix, bias = [t.to(dtype).requires_grad_() for t in (x, *stencils, matrix, bias)]
    y = x
    for weight, (_, (top, bottom, left, right), dilation) in zip(stencils, steps(stencils, case[3]), strict=True):
        y = F.conv2d(F.pad(y, (left, right, top, bottom)), weight, None, 1, 0, dilation, x.shape[1])
    y = F.conv2d(y, matrix[:, :, None, None], bias)
    y.backward(grad.to(dtype))
    return y.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_no_farther_from_float64_than_pytorch(case, dtype):
    given = drawn(case, dtype)
    exact, eager = in_torch(case, *given, torch.float64), in_torch(case, *given, dtype)
    for layout in ("nchw", "channels_last", "slice", "crop"):
        x, grad = (laid_out(t, layout) for t in given[:2])
        for ours, plain, right in zip(computed(case, x, grad, *given[2:]), eager, exact, strict=True):
            assert_no_worse(ours.double(), plain.double(), right, dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_integers_are_exact(case):
    given = drawn(case, torch.float32, whole_numbers(2))
    for ours, right in zip(computed(case, *given), in_torch(case, *given, torch.float64), strict=True):
        assert torch.equal(ours.double(), right)


@pytest.mark.parametrize("channels", [4, 8, 20])
def test_the_same_bits_again_and_with_more_threads(channels):
    case = (2, channels, 23, 29), 30, [(3, 3), (3, 5)], [1, 1, 1, 1, 2, 3, 2, 2]
    given = drawn(case, torch.float32)
    assert_same_bits(lambda: computed(case, *given))


@pytest.mark.parametrize("channels", [5, 20])
def test_a_nan_reaches_its_field_and_its_channel_s_weights_alone(channels):
    case = (2, channels, 6, 7), 9, [(3, 3)], [1, 1, 1, 1]
    given = drawn(case, torch.float32)
    given[0][1, 3, 2, 1] = torch.nan
    y, found, taps, matrix, bias = computed(case, *given)
    assert y[1, :, 1:4, :3].isnan().all()
    assert y.isnan().sum() == 9 * 9
    assert not found.isnan().any()
    assert taps.isnan().flatten(1).any(1).nonzero().flatten().tolist() == [3]
    assert matrix[:, 3].isnan().all()
    assert matrix.isnan().sum() == 9
    assert not bias.isnan().any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, after):
    """Each operand between pages that must not be touched, in a child process."""
    cases = [(case, (case, *drawn(case, dtype))) for case in CASES]
    assert_touches_nothing_else(cases, computed, after)
