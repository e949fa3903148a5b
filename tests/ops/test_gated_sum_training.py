"""The gated sum that trains: its reference, gradient, fake kernel, and errors."""

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.ops import gated_sum_training as ops
from leanconv.ops.gated_sum import gated_sum


def maps(dtype=torch.float64, requires_grad=True):
    torch.manual_seed(0)
    return [torch.randn(2, 3, 4, 5, dtype=dtype, requires_grad=requires_grad) for _ in range(2)]


def test_the_reference_is_the_plain_gated_sum():
    a, b = maps(requires_grad=False)
    y, gate = ops.result(a, b)
    torch.testing.assert_close(y, gated_sum(a, b))
    torch.testing.assert_close(gate, torch.sigmoid(a.mean((2, 3)) - b.mean((2, 3))))


def test_gradient():
    assert torch.autograd.gradcheck(lambda a, b: ops.gated_sum(a, b)[0], maps())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    a, b = maps(dtype)
    y, gate = ops.result(a.detach(), b.detach())
    torch.library.opcheck(torch.ops.leanconv.gated_sum.default, (a, b))
    torch.library.opcheck(torch.ops.leanconv.gated_sum_gradient.default, (y, a.detach(), b.detach(), gate))


@pytest.mark.parametrize("other", [torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 5).bfloat16(), torch.randn(3, 4, 5)])
def test_maps_that_are_not_alike(other):
    with pytest.raises(BadInput, match="one size and type"):
        ops.gated_sum(torch.randn(2, 3, 4, 5), other)
