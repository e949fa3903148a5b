"""`ops.hetconv`: the layer's own forward, PyTorch's rules for operators, gradients of any order, what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput
from leanconv.nn import HetConv2d
from leanconv.ops import hetconv as ops

# Part, kernel, stride, padding, dilation; arrangement.
SHAPES = [
    (2, (3, 3), (1, 1), (1, 1), (1, 1), "shifted"),
    (3, (1, 5), (2, 1), (0, 3), (1, 1), "shifted"),
    (4, (3, 1), (1, 1), (3, 0), (2, 1), "shifted"),
    (2, (3, 3), (1, 1), (1, 1), (1, 1), "blocked"),
    (3, (1, 5), (2, 1), (0, 3), (1, 1), "blocked"),
]


def given(shape=SHAPES[0], dtype=torch.float64, *, bias=True, size=(2, 4, 6)):
    """A layer, and the operator's inputs with its weights."""
    torch.manual_seed(0)
    part, *geometry, kind = shape
    layer = HetConv2d(2 * part, 3 * part, *geometry, part=part, bias=bias, arrangement=kind).to(dtype)
    x = torch.randn(size[0], 2 * part, *size[1:], dtype=dtype, requires_grad=True)
    return layer, (x, layer.spatial, layer.pointwise, layer.bias, *map(list, geometry[1:]), kind == "blocked")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_layer_s_forward(shape, bias):
    layer, inputs = given(shape, bias=bias)
    y, expected = ops.hetconv2d(*inputs), layer(inputs[0])
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    leaves = [inputs[0], *layer.parameters()]
    grad = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_dense_kernel_is_the_layer_s(shape):
    layer, inputs = given(shape)
    torch.testing.assert_close(ops.dense_kernel(*inputs[1:3], layer.part, inputs[-1]), layer.dense_weight())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_whole_1x1_adds_to_a_filter_s_own_kernels(shape):
    """With its gradient: a filter's own entries are in both weights."""
    layer, (x, spatial, _, _, *geometry) = given(shape)
    full = torch.randn(layer.out_channels, layer.in_channels, dtype=torch.float64, requires_grad=True)
    y = ops.hetconv2d(x, spatial, full, None, *geometry)
    kernel = torch.zeros_like(layer.dense_weight())
    kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = full.detach()
    with torch.no_grad():
        layer.pointwise.zero_()
        layer.bias.zero_()
    torch.testing.assert_close(y, layer(x) + F.conv2d(x, kernel, None, *geometry[:3]))
    assert torch.autograd.gradcheck(lambda *w: ops.hetconv2d(x, *w, None, *geometry), (spatial, full), fast_mode=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_first_and_second_order(shape):
    _, inputs = given(shape, size=(1, 3, 4))

    def run(*leaves):
        return ops.hetconv2d(*leaves, *inputs[4:])

    assert torch.autograd.gradcheck(run, inputs[:4], fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs[:4], fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_opcheck(dtype, bias, shape):
    _, inputs = given(shape, dtype, bias=bias)
    torch.library.opcheck(torch.ops.leanconv.hetconv2d.default, inputs)
    grad = torch.randn(ops.output_size(inputs[0].shape, inputs[1].shape, *inputs[4:7]), dtype=dtype)
    rest = (grad, *(each.detach() for each in inputs[:3]), *inputs[4:7])
    for of_x in (True, False):
        torch.library.opcheck(torch.ops.leanconv.hetconv2d_gradient.default, (*rest, of_x, inputs[7]))


def test_no_sample_has_no_result_and_gradients_of_zero():
    layer, (_, *weights) = given(dtype=torch.float32)
    x = torch.randn(0, 4, 4, 6, requires_grad=True)
    y = ops.hetconv2d(x, *weights)
    assert list(y.shape) == [0, 6, 4, 6]
    found = torch.autograd.grad(y.sum(), [x, *layer.parameters()])
    assert not any(each.any() for each in found)


def test_flops_are_those_of_the_live_weights_and_twice_as_many_backward():
    layer, inputs = given(dtype=torch.float32)
    once = 2 * 2 * 4 * 6 * (layer.spatial.numel() + layer.pointwise.numel())
    with FlopCounterMode(display=False) as counter:
        y = ops.hetconv2d(*inputs)
    assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * once


def test_half_maps_have_sums_in_float32():
    layer, inputs = given(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.hetconv2d(*inputs)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(each.grad.dtype == torch.float32 for each in (inputs[0], *layer.parameters()))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, torch.randn(4, 4, 6), "takes a map N C H W"),
        (0, torch.randn(2, 6, 4, 6), "of 6 channels takes weights"),
        (1, torch.randn(6, 4, 3, 3), "of 4 channels takes weights"),
        (1, torch.randn(5, 2, 3, 3), "P divides O"),
        (1, torch.randn(6, 2, 2, 3), "has a centre"),
        (2, torch.randn(6, 3), "takes weights"),
        (3, torch.randn(4), "as many biases"),
        (4, [1], "pairs of stride"),
        (5, [-1, 1], "pairs of stride"),
        (6, [9, 1], "leaves no pixel"),
    ],
)
def test_what_does_not_fit_is_an_error(at, value, words):
    inputs = list(given(dtype=torch.float32)[1])
    inputs[at] = value
    with pytest.raises(BadInput, match=words):
        ops.hetconv2d(*inputs)
