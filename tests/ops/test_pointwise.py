"""1×1 convolution as an operator that trains: its reference, gradients of any order, and errors."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.errors import BadInput
from leanconv.ops import pointwise as ops


def arguments(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    shapes = [(2, 3, 4, 5), (7, 3), *([(7,)] if bias else [])]
    found = [torch.randn(s, dtype=dtype, requires_grad=True) for s in shapes]
    return [*found, *([] if bias else [None])]


@pytest.mark.parametrize("bias", [True, False])
def test_the_reference_is_conv2d(bias):
    x, weight, b = arguments(bias=bias)
    torch.testing.assert_close(ops.pointwise_conv2d(x, weight, b), F.conv2d(x, weight[:, :, None, None], b))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients(bias):
    given = arguments(bias=bias)
    assert torch.autograd.gradcheck(ops.pointwise_conv2d, given)
    assert torch.autograd.gradgradcheck(ops.pointwise_conv2d, given)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    x, weight, bias = arguments(dtype)
    torch.library.opcheck(torch.ops.leanconv.pointwise_conv2d.default, (x, weight, bias))
    y = ops.result(x, weight, bias).detach().requires_grad_()
    torch.library.opcheck(torch.ops.leanconv.pointwise_weight_gradient.default, (y, x))


def test_what_does_not_fit():
    x, weight, bias = arguments()
    with pytest.raises(BadInput, match="weights O C"):
        ops.pointwise_conv2d(x, weight[:, :2], bias)
    with pytest.raises(BadInput, match="as many biases"):
        ops.pointwise_conv2d(x, weight, bias[:3])


def test_flops_count_both_factors():
    from torch.utils.flop_counter import FlopCounterMode

    x, weight, bias = arguments(torch.float32)
    with FlopCounterMode(display=False) as counter:
        ops.pointwise_conv2d(x, weight, bias).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 4 * 5 * 3 * 7
