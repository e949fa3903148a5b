"""Depthwise kernels for training against float64: exact on integers, fair on random numbers, inside their maps."""

import os

import pytest
import torch

from leanconv.kernels.cpu.runtime import depthwise
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.ops.depthwise import new_map
from tests.kernels.depthwise_cases import Case, cases, in_torch, maps, whole_numbers
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.runtime.repeated import assert_same_bits
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")
PADDED = ((1, 1), (1, 1, 1, 1), (1, 1))


def computed(case, x, grad, weight, bias, around=lambda t: t):
    """All four results, in memory that held NaN. `around`: where operands and results are put."""
    made = [new_map(x, case.out), new_map(x, case.size), torch.empty_like(weight), torch.empty_like(bias)]
    y, data, kernel, shift = (around(t.fill_(torch.nan)) for t in made)
    geometry = depthwise.Geometry(case.size, case.out, case.kernel, *case.geometry)
    x, grad = around(readable(x)), around(readable(grad))
    weight, bias = around(weight), around(bias)
    depthwise.forward(x, weight, bias, y, geometry)
    depthwise.input_gradient(grad, weight, data, geometry)
    depthwise.weight_gradient(grad, x, kernel, shift, geometry)
    return y, data, kernel, shift


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "slice", "crop"])
@pytest.mark.parametrize("seed", range(4))
def test_exact_on_integers(seed, layout):
    torch.manual_seed(seed)
    for number, case in enumerate(cases(100 * seed + len(layout), 12)):
        dtype = DTYPES[number % 2]
        x, grad, weight, bias = maps(case, dtype, whole_numbers(1 if dtype == torch.bfloat16 else 5))
        found = computed(case, laid_out(x, layout), laid_out(grad, layout), weight, bias)
        exact = in_torch(case, x, grad, weight, bias, torch.float64)
        for name, a, b in zip(("y", "x", "weight", "bias"), found, exact, strict=True):
            assert torch.equal(a, b.to(a.dtype)), f"{name} of {case} in {dtype}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_farther_from_float64_than_pytorch(dtype):
    torch.manual_seed(0)
    for case in [*cases(7, 12), Case((2, 24, 57, 61), (3, 3), PADDED), Case((3, 17, 40, 40), (7, 7), PADDED)]:
        x, grad, weight, bias = maps(case, dtype, torch.randn)
        weight, bias = weight.to(dtype).float(), bias.to(dtype).float()
        exact, eager = (in_torch(case, x, grad, weight, bias, kind) for kind in (torch.float64, dtype))
        found = computed(case, x, grad, weight, bias)
        for a, b, c in zip(found, eager, exact, strict=True):
            assert_no_worse(a.double(), b.double(), c, dtype=a.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_again_and_with_more_threads(dtype):
    torch.manual_seed(0)
    case = Case((3, 40, 23, 29), (3, 3), ((2, 1), (1, 1, 0, 2), (1, 1)))
    given = maps(case, dtype, torch.randn)
    assert_same_bits(lambda: computed(case, *given))


def test_a_nan_reaches_what_reads_it_and_nothing_else():
    case = Case((2, 11, 9, 10), (3, 3), PADDED)
    x, grad, weight, bias = maps(case, torch.float32, torch.randn)
    x[0, 3, 4, 5] = grad[1, 7, 4, 4] = torch.nan
    for a, b in zip(
        computed(case, x, grad, weight, bias), in_torch(case, x, grad, weight, bias, torch.float64), strict=True
    ):
        assert torch.equal(a.isnan(), b.isnan())
        assert a.isnan().any()


@pytest.mark.parametrize("threads", [1, 2])
def test_no_samples(threads):
    """With more threads the tasks are shared out among them: none, too."""
    case, before = Case((0, 8, 5, 5), (3, 3), PADDED), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        y, data, kernel, shift = computed(case, *maps(case, torch.float32, torch.randn))
    finally:
        torch.set_num_threads(before)
    assert y.shape == data.shape == (0, 8, 5, 5)
    assert not kernel.any()
    assert not shift.any()


def test_an_expanded_gradient():
    case = Case((2, 9, 6, 7), (3, 3), PADDED)
    x, _, weight, bias = maps(case, torch.float32, whole_numbers(4))
    grad = torch.ones(()).expand(case.out)  # as `sum` gives it: every stride is 0
    for a, b in zip(
        computed(case, x, grad, weight, bias), in_torch(case, x, grad, weight, bias, torch.float64), strict=True
    ):
        assert torch.equal(a.double(), b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, after):
    """Each operand between pages that must not be touched, in a child process."""
    torch.manual_seed(0)
    chosen = [
        *cases(3, 10),
        Case((2, 5, 3, 7), (3, 3), PADDED),
        Case((1, 19, 6, 5), (5, 1), ((2, 2), (2, 2, 0, 0), (1, 1))),
    ]
    fenced_cases = [(case, (case, *maps(case, dtype, torch.randn))) for case in chosen]
    assert_touches_nothing_else(fenced_cases, computed, after)
