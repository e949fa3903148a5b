"""`ops.hetconv_branches`: the layer's own branches, PyTorch's rules for operators, gradients of any order, refusals."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from leanconv.errors import BadInput
from leanconv.nn import SPConv2d
from leanconv.ops import hetconv_branches as ops

# Channels, outputs, kernel, stride, padding, dilation; share and groups of the representative channels.
SHAPES = [
    (8, 6, 3, 1, 1, 1, 0.5, 2),
    (9, 6, (1, 5), 1, (0, 4), 2, 0.67, 3),
    (5, 4, (3, 1), 1, (1, 0), 1, 0.8, 4),
    (8, 6, 3, 2, 1, 1, 0.5, 2),
    (9, 6, 3, 2, 2, 2, 0.67, 3),
]


def given(shape=SHAPES[0], dtype=torch.float64, *, bias=True, size=(2, 4, 6)):
    """A layer, and the operator's inputs with its weights."""
    torch.manual_seed(0)
    channels, outputs, kernel, stride, padding, dilation, alpha, groups = shape
    layer = SPConv2d(
        channels, outputs, kernel, stride, padding, dilation, bias=bias, alpha=alpha, rep_groups=groups, dtype=dtype
    )
    x = torch.randn(size[0], channels, *size[1:], dtype=dtype, requires_grad=True)
    flat = (each.weight[:, :, 0, 0] for each in (layer.pointwise, layer.plain))
    return layer, (x, layer.spatial.weight, *flat, layer.plain.bias, [*layer.stride, *layer.dilation])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_they_are_the_layer_s_branches(shape, bias):
    layer, inputs = given(shape, bias=bias)
    found, expected = ops.hetconv_branches(*inputs), layer.branches(inputs[0])
    leaves = [inputs[0], *(each for each in (layer.spatial.weight, layer.pointwise.weight, layer.plain.weight))]
    slopes = [torch.randn_like(each) for each in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
        assert a.is_contiguous(memory_format=torch.channels_last)
    gradients = (torch.autograd.grad(each, leaves, slopes) for each in (found, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_of_first_and_second_order(shape):
    _, inputs = given(shape, size=(1, 3, 4))

    def run(*leaves):
        return ops.hetconv_branches(*leaves, inputs[5])

    assert torch.autograd.gradcheck(run, inputs[:5], fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs[:5], fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_opcheck(shape, dtype, bias):
    _, inputs = given(shape, dtype=dtype, bias=bias)
    inputs = [each.detach().requires_grad_() if isinstance(each, torch.Tensor) else each for each in inputs]
    torch.library.opcheck(torch.ops.leanconv.hetconv_branches.default, tuple(inputs))
    slopes = [torch.randn_like(each) for each in ops.hetconv_branches(*inputs)]
    rest = (*slopes, *(each.detach() for each in inputs[:4]), inputs[5])
    for of_x in (True, False):
        torch.library.opcheck(torch.ops.leanconv.hetconv_branches_gradient.default, (*rest, of_x))


def test_no_sample_has_no_result_and_gradients_of_zero():
    layer, (_, *weights) = given(dtype=torch.float32)
    x = torch.randn(0, 8, 4, 6, requires_grad=True)
    a, b = ops.hetconv_branches(x, *weights)
    assert list(a.shape) == list(b.shape) == [0, 6, 4, 6]
    found = torch.autograd.grad((a + b).sum(), [x, layer.spatial.weight, layer.plain.weight])
    assert not any(each.any() for each in found)


@pytest.mark.parametrize(
    ("shape", "once"),
    [
        # Pixels, outputs; taps of two channels, one number of each of eight. Without a stride the centre counts once.
        (SHAPES[0], 2 * 2 * 4 * 6 * 6 * (8 * 2 + 8)),
        (SHAPES[3], 2 * 2 * 2 * 3 * 6 * (9 * 2 + 8)),
    ],
)
def test_flops_are_those_of_the_live_weights_and_twice_as_many_backward(shape, once):
    _, inputs = given(shape, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        a, b = ops.hetconv_branches(*inputs)
    assert counter.get_total_flops() == once
    with FlopCounterMode(display=False) as counter:
        (a + b).sum().backward()
    assert counter.get_total_flops() == 2 * once


def test_half_maps_have_sums_in_float32():
    layer, inputs = given(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = ops.hetconv_branches(*inputs)
    assert a.dtype == b.dtype == torch.bfloat16
    (a.float() + b.float()).sum().backward()
    weights = layer.spatial.weight, layer.pointwise.weight, layer.plain.weight, layer.plain.bias
    assert all(each.grad.dtype == torch.float32 for each in (inputs[0], *weights))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, torch.randn(8, 4, 6), "take a map N C H W"),
        (0, torch.randn(2, 9, 4, 6), "take a map N C H W"),
        (1, torch.randn(6, 4, 3, 3), "of 4 channels takes weights"),
        (1, torch.randn(6, 2, 2, 3), "has a centre"),
        (1, torch.randn(6, 2, 3), "take weights"),
        (2, torch.randn(6, 4, 1), "take a map N C H W"),
        (3, torch.randn(5, 4), "have 6 outputs"),
        (4, torch.randn(4), "have 6 outputs"),
        (5, [1, 1, 1], "two dilations"),
        (5, [1, 1, 0, 1], "pairs of stride"),
    ],
)
def test_what_does_not_fit_is_an_error(at, value, words):
    inputs = list(given(dtype=torch.float32)[1])
    inputs[at] = value
    with pytest.raises(BadInput, match=words):
        ops.hetconv_branches(*inputs)
