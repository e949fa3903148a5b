"""The depthwise operators of PyTorch: their references, gradients, fake kernels, flops, autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput
from leanconv.ops import depthwise as ops
from tests.kernels.depthwise_cases import cases, in_torch, maps

GEOMETRY = ([1, 2], [1, 0, 2, 1], [2, 1])


def operands(dtype=torch.float32, requires_grad=True):
    torch.manual_seed(0)
    return [torch.randn(size, dtype=dtype, requires_grad=requires_grad) for size in [(2, 5, 7, 6), (5, 1, 3, 2), (5,)]]


@pytest.mark.parametrize("case", cases(5, 8), ids=str)
def test_references_are_pytorchs_convolution(case):
    x, grad, weight, bias = maps(case, torch.float64, torch.randn)
    y, data, kernel, shift = in_torch(case, x, grad, weight, bias, torch.float64)
    weight, bias = weight.double(), bias.double()
    torch.testing.assert_close(ops.result(x, weight, bias, *case.geometry), y)
    torch.testing.assert_close(ops.data_gradient(grad, weight, x.shape, *case.geometry), data)
    for a, b in zip(ops.kernel_gradient(grad, x, case.kernel, *case.geometry), (kernel, shift), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype):
    x, weight, bias = operands(dtype)
    grad = torch.randn_like(ops.depthwise_conv2d(x, weight, bias, *GEOMETRY), requires_grad=True)
    namespace = torch.ops.leanconv
    torch.library.opcheck(namespace.depthwise_conv2d.default, (x, weight, bias, *GEOMETRY))
    torch.library.opcheck(namespace.depthwise_conv2d.default, (x, weight, None, *GEOMETRY))
    torch.library.opcheck(namespace.depthwise_input_gradient.default, (grad, weight, list(x.shape), *GEOMETRY))
    torch.library.opcheck(namespace.depthwise_weight_gradient.default, (grad, x, [3, 2], *GEOMETRY))


def test_gradients_of_first_and_second_order():
    given = operands(torch.float64)
    assert torch.autograd.gradcheck(lambda *each: ops.depthwise_conv2d(*each, *GEOMETRY), given)
    assert torch.autograd.gradgradcheck(lambda *each: ops.depthwise_conv2d(*each, *GEOMETRY), given)


def test_flops_of_the_result_and_both_gradients():
    x, weight, bias = operands()
    with FlopCounterMode(display=False) as counter:
        y = ops.depthwise_conv2d(x, weight, bias, *GEOMETRY)
        assert counter.get_total_flops() == 2 * y.numel() * 6
        y.sum().backward()
    assert counter.get_total_flops() == 3 * 2 * y.numel() * 6


def test_autocast_casts_the_map_and_leaves_the_gradients_in_float32():
    x, weight, bias = operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.depthwise_conv2d(x, weight, bias, *GEOMETRY)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert (x.grad.dtype, weight.grad.dtype, bias.grad.dtype) == (torch.float32,) * 3
    top, bottom, left, right = GEOMETRY[1]
    rounded = F.pad(x.detach().bfloat16().double(), (left, right, top, bottom))
    exact = F.conv2d(rounded, weight.double(), bias.double(), GEOMETRY[0], 0, GEOMETRY[2], 5)
    # Without a kernel the reference rounds the weights too.
    torch.testing.assert_close(y.double(), exact, rtol=0.02, atol=0.02 * float(exact.abs().max().detach()))


@pytest.mark.parametrize(
    ("weight", "geometry", "words"),
    [
        ((5, 2, 3, 3), GEOMETRY, "C 1 R S"),
        ((4, 1, 3, 3), GEOMETRY, "C 1 R S"),
        ((5, 1, 3, 3), ([1], [0] * 4, [1, 1]), "two"),
    ],
)
def test_shapes_that_do_not_fit(weight, geometry, words):
    with pytest.raises(BadInput, match=words):
        ops.depthwise_conv2d(torch.randn(1, 5, 6, 6), torch.randn(weight), None, *geometry)


def test_biases_are_as_many_as_channels():
    with pytest.raises(BadInput, match="5 channels takes as many biases"):
        ops.depthwise_conv2d(torch.randn(1, 5, 6, 6), torch.randn(5, 1, 3, 3), torch.randn(1), *GEOMETRY)


def test_no_pixel_left_is_an_error():
    with pytest.raises(RuntimeError):
        ops.depthwise_conv2d(torch.randn(1, 4, 2, 2), torch.randn(4, 1, 3, 3), None, [1, 1], [0] * 4, [1, 1])
