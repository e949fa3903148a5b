"""HetConv against the layer's portable forward in float64, in every layout; integers exactly; inside its maps."""

import math
import os
import random
from typing import NamedTuple

import pytest
import torch
from torch import nn

from leanconv.kernels.cpu.runtime import hetconv as kernels
from leanconv.kernels.cpu.runtime.training_abi import readable, runtime
from leanconv.nn import HetConv2d
from leanconv.ops.depthwise import new_map
from leanconv.spec import out_length
from tests.kernels.depthwise_cases import whole_numbers
from tests.kernels.runtime.fences import assert_touches_nothing_else
from tests.kernels.runtime.repeated import assert_same_bits
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.skipif(runtime() is None, reason="no C compiler")


class Case(NamedTuple):
    size: tuple[int, int, int, int]
    outputs: int
    part: int
    geometry: kernels.Geometry
    blocked: bool = False
    full: bool = False

    @property
    def groups(self):
        return kernels.Groups(self.part, self.blocked, self.full)

    def layer(self):
        kernel, stride, padding, dilation = self.geometry
        made = _Full if self.full else HetConv2d
        kind = "blocked" if self.blocked else "shifted"
        return made(self.size[1], self.outputs, kernel, stride, padding, dilation, part=self.part, arrangement=kind)

    @property
    def out(self):
        sides = zip(self.size[2:], *self.geometry, strict=True)
        return [out_length(side, k, stride, d, 2 * pad) for side, k, stride, pad, d in sides]


class _Full(HetConv2d):
    """With a number for every channel at the centre, beside the k×k kernels."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.pointwise = nn.Parameter(torch.randn(self.out_channels, self.in_channels))

    def _full_pointwise(self, pointwise):
        return pointwise[..., None, None]


def cases(seed, count, kinds=((False, False),)):
    """`count` cases that leave a pixel. Steps of P channels: odd ones, and more than a block of vectors has."""
    draw, found = random.Random(seed), []
    sides, steps = [1, 2, 3, 5, 8, 13, 30], [1, 2, 3, 4, 5, 9]
    while len(found) < count:
        part = draw.choice(kernels.PARTS)
        size = draw.choice([1, 2, 3]), part * draw.choice(steps), draw.choice(sides), draw.choice(sides)
        geometry = kernels.Geometry(
            draw.choice([(3, 3), (3, 3), (1, 1), (5, 3), (1, 5), (3, 1), (7, 5)]),
            draw.choice([(1, 1), (1, 1), (2, 2), (draw.randint(1, 3), draw.randint(1, 3))]),
            (draw.randint(0, 4), draw.randint(0, 4)),
            draw.choice([(1, 1), (1, 1), (draw.randint(1, 3), draw.randint(1, 3))]),
        )
        case = Case(size, part * draw.choice(steps), part, geometry, *draw.choice(kinds))
        if min(case.out) >= 1:
            found.append(case)
    return found


# Two blocks in whole pairs of vectors: those alone are parted by the tiles.
_SQUARE = kernels.Geometry((3, 3), (1, 1), (1, 1), (1, 1))
_PAIRED = [
    Case((2, channels, 5, 9), outputs, 2, _SQUARE._replace(stride=(stride, stride)), blocked=True, full=full)
    for channels, outputs, stride, full in ((6, 32, 1, False), (6, 96, 2, True), (64, 6, 2, False), (32, 32, 1, True))
]
CASES = cases(0, 40) + cases(1, 60, [(True, False), (True, True), (False, True)]) + _PAIRED
IDS = [str(i) for i in range(len(CASES))]


def drawn(case, dtype, draw=torch.randn):
    """x, gradient of the result, spatial, pointwise and bias."""
    torch.manual_seed(0)
    weights = [draw(tuple(each.shape)) for each in case.layer().parameters()]
    return draw(case.size).to(dtype), draw((case.size[0], case.outputs, *case.out)).to(dtype), *weights


def computed(case, x, grad, *weights, around=lambda t: t):
    """Result, gradients of the data and of the weights, in memory that held NaN."""
    y, found = (around(new_map(x, t.shape).fill_(torch.nan)) for t in (grad, x))
    sums = [around(torch.full_like(t, torch.nan)) for t in weights]
    x, grad, weights = around(readable(x)), around(readable(grad)), [around(t) for t in weights]
    kernels.forward(x, *weights, case.groups, case.geometry, y)
    kernels.data_gradient(grad, *weights[:2], case.groups, case.geometry, found)
    kernels.weight_gradient(grad, x, case.groups, case.geometry, sums)
    return y, found, *sums


def in_torch(case, x, grad, *weights, dtype):
    layer, x = case.layer().to(dtype), x.to(dtype).requires_grad_()
    with torch.no_grad():
        for own, given in zip(layer.parameters(), weights, strict=True):
            own.copy_(given)
    y = layer(x)
    y.backward(grad.to(dtype))
    return y.detach(), x.grad, *(each.grad for each in layer.parameters())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_no_farther_from_float64_than_pytorch(case, dtype):
    x, grad, *weights = drawn(case, dtype)
    weights = [each.to(dtype).float() for each in weights]  # bfloat16 multiplies such weights
    given = x, grad, *weights
    exact = in_torch(case, *given, dtype=torch.float64)
    # PyTorch 2.14.1's own bfloat16 is wrong on AMX where a stride leaves one column (case 45): an exact sum, rounded.
    eager = in_torch(case, *given, dtype=dtype) if dtype == torch.float32 else [each.to(dtype) for each in exact]
    terms = case.outputs * math.prod(case.geometry.kernel) if dtype == torch.float32 else 0
    for layout in ("nchw", "channels_last", "slice", "crop"):
        laid = (laid_out(t, layout) for t in given[:2])
        for ours, plain, right in zip(computed(case, *laid, *weights), eager, exact, strict=True):
            # One sum, where the layer adds those of two convolutions.
            assert_no_worse(ours.double(), plain.double(), right, factor=3.0, dtype=dtype, terms=terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_integers_are_exact(case, dtype):
    given = drawn(case, dtype, whole_numbers(2))
    for ours, right in zip(computed(case, *given), in_torch(case, *given, dtype=torch.float64), strict=True):
        assert torch.equal(ours, right.to(ours.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("outputs", [8, 16, 40])
def test_the_same_bits_again_and_with_more_threads(outputs, blocked, dtype):
    case = Case((3, 12, 23, 29), outputs, 4, kernels.Geometry((3, 3), (1, 1), (1, 1), (1, 1)), blocked)
    given = drawn(case, dtype)
    assert_same_bits(lambda: computed(case, *given))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_reaches_its_field_and_its_channel_s_weights_alone(dtype):
    case = Case((2, 12, 6, 7), 8, 4, kernels.Geometry((3, 3), (1, 1), (1, 1), (1, 1)))
    given = drawn(case, dtype)
    given[0][1, 5, 2, 1] = torch.nan  # of filters 1 and 5 the k×k's, of the others one number's
    y, found, spatial, pointwise, bias = computed(case, *given)
    assert y[1, [1, 5], 1:4, :3].isnan().all()
    assert y[1, :, 2, 1].isnan().all()
    assert y.isnan().sum() == 2 * 9 + 6
    assert not found.isnan().any()
    assert spatial.isnan().flatten(2).any(2).nonzero().tolist() == [[1, 1], [5, 1]]
    assert pointwise.isnan().sum() == 6
    assert not bias.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_frozen_biases_and_none_of_them(dtype):
    case = CASES[0]
    x, grad, spatial, pointwise, bias = drawn(case, dtype)
    x, grad = readable(x), readable(grad)
    with_bias, without = new_map(x, grad.shape), new_map(x, grad.shape)
    kernels.forward(x, spatial, pointwise, bias, case.groups, case.geometry, with_bias)
    kernels.forward(x, spatial, pointwise, None, case.groups, case.geometry, without)
    torch.testing.assert_close(without + bias.to(dtype)[:, None, None], with_bias, atol=0.1, rtol=0.02)
    sums = [torch.empty_like(spatial), torch.empty_like(pointwise)]
    kernels.weight_gradient(grad, x, case.groups, case.geometry, [*sums, None])
    assert torch.equal(sums[0], computed(case, x, grad, spatial, pointwise, bias)[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_touches_nothing_beside_its_maps(dtype, after):
    """Each operand between pages that must not be touched, in a child process."""
    cases = [(case, (case, *drawn(case, dtype))) for case in CASES]
    assert_touches_nothing_else(cases, computed, after)
