"""`ops.separable_branches`: PyTorch's rules for operators, gradients of any order, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput
from leanconv.ops import separable_branches as ops

GEOMETRY = [1, 1, 1, 1, 0, 3, 1, 2]


def given(dtype=torch.float64, *, plain=True, stencils=2):
    """Tensors and geometry, in the operator's order."""
    torch.manual_seed(0)
    sizes = [(2, 5, 4, 6), (3, 1, 3, 3), (3, 1, 2, 3), (4, 3), (4,), (4, 2), (4,)]
    made = [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]
    made[1 + stencils : 3] = [None] * (2 - stencils)
    if not plain:
        made[0] = torch.randn(2, 3, 4, 6, dtype=dtype, requires_grad=True)
        made[5:] = [None, None]
    return *made, GEOMETRY[: 4 * stencils]


def test_it_is_the_convolutions_one_after_the_other():
    x, first, second, matrix, bias, plain, plain_bias, geometry = given()
    large = F.conv2d(x[:, :3], first, None, 1, 1, 1, 3)
    large = F.conv2d(F.pad(large, (3, 1, 0, 1)), second, None, 1, 0, (1, 2), 3)
    a, b = ops.separable_branches(x, first, second, matrix, bias, plain, plain_bias, geometry)
    torch.testing.assert_close(a, F.conv2d(large, matrix[:, :, None, None], bias))
    torch.testing.assert_close(b, F.conv2d(x[:, 3:], plain[:, :, None, None], plain_bias))
    assert a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{}, {"plain": False, "stencils": 1}, {"stencils": 0}], ids=str)
def test_gradients_of_first_and_second_order(options):
    *tensors, geometry = given(**options)
    leaves = [each for each in tensors if each is not None]

    def run(*leaves):
        found = iter(leaves)
        outputs = ops.separable_branches(*(None if t is None else next(found) for t in tensors), geometry)
        return outputs if tensors[5] is not None else outputs[0]

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("options", [{}, {"plain": False, "stencils": 1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, options):
    inputs = given(dtype, **options)
    torch.library.opcheck(torch.ops.leanconv.separable_branches.default, inputs)
    x, first, second, matrix, _, plain, _, geometry = (t.detach() if isinstance(t, torch.Tensor) else t for t in inputs)
    y = torch.randn(2, 4, 4, 6, dtype=dtype)
    rest = (y, None if plain is None else y, x, first, second, matrix, plain, geometry)
    for of_x in (True, False):
        torch.library.opcheck(torch.ops.leanconv.separable_branches_gradient.default, (*rest, of_x))


def test_flops_are_those_of_the_convolutions_and_twice_as_many_backward():
    inputs = given(torch.float32)
    once = 2 * 2 * 4 * 6 * (3 * 9 + 3 * 6 + 4 * 3 + 4 * 2)
    with FlopCounterMode(display=False) as counter:
        a, b = ops.separable_branches(*inputs)
    assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        (a.sum() + b.sum()).backward()
    assert counter.get_total_flops() == 2 * once


def test_half_maps_have_sums_in_float32():
    x, *weights, geometry = given(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ops.separable_branches(x, *weights, geometry)
    assert a.dtype == b.dtype == torch.bfloat16
    (a.float().sum() + b.float().sum()).backward()
    assert all(each.grad.dtype == torch.float32 for each in (x, *weights))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (3, torch.randn(4, 2), "whose inputs are its channels"),
        (4, torch.randn(3), "as many biases"),
        (5, torch.randn(3, 2), "the same outputs"),
        (1, torch.randn(2, 1, 3, 3), "weights C 1 R S"),
        (1, None, "as its first"),
        (7, [1, 1, 1, 1], "four sizes each"),
        (7, [3, 1, 1, 1, 0, 3, 1, 2], "keeps the map's size"),
    ],
)
def test_what_does_not_fit_is_an_error(at, value, words):
    inputs = list(given(torch.float32))
    inputs[at] = value
    with pytest.raises(BadInput, match=words):
        ops.separable_branches(*inputs)
