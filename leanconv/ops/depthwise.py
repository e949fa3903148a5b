"""Depthwise convolution as operators of PyTorch that train: the result, the gradient of the data, of the weights.

    y[n,c,p,q] = bias[c] + Σ_r Σ_s w[c,r,s] · x[n, c, p·stride + r·dilation - top, q·stride + s·dilation - left]

MACs N·C·P·Q·R·S, and as many for each gradient. Each operator is its reference here; `kernels.training` gives the CPU
its kernels. They have fake kernels (they compile with `fullgraph=True`), gradients of any order, flop formulas and a
rule for autocast. Arguments of all: `x` `N C H W`; `weight` `C 1 R S`, of x's type or float32; `bias` `C` likewise;
`stride` and `dilation` pairs; `padding` top, bottom, left, right (negative ones crop). Maps that result are
channels_last.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from leanconv.errors import BadInput
from leanconv.ops.autocast import casts_its_map
from leanconv.spec import out_length

Ints = Sequence[int]
NHWC = torch.channels_last


def output_size(size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    """`N C P Q` of a map `N C H W`, by Conv2d's formula with four paddings."""
    sums = (padding[0] + padding[1], padding[2] + padding[3])
    return [*size[:2], *(out_length(size[2 + i], kernel[i], stride[i], dilation[i], sums[i]) for i in (0, 1))]


def check(x: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, bias: Tensor | None = None) -> None:
    """Raise BadInput if shapes do not fit."""
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[0] != x.shape[1] or weight.shape[1] != 1:
        raise BadInput(
            f"a depthwise convolution takes maps N C H W and weights C 1 R S, got {list(x.shape)} and "
            f"{list(weight.shape)}"
        )
    if bias is not None and list(bias.shape) != [x.shape[1]]:
        raise BadInput(f"a depthwise convolution of {x.shape[1]} channels takes as many biases, got {list(bias.shape)}")
    if len(stride) != 2 or len(padding) != 4 or len(dilation) != 2 or min(*stride, *dilation) < 1:
        raise BadInput(
            f"a depthwise convolution takes two strides, four paddings (top, bottom, left, right) and two dilations, "
            f"got {list(stride)}, {list(padding)} and {list(dilation)}"
        )


def _padded(x: Tensor, padding: Ints) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom))


def result(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """Each channel's own R×S filter: the reference. Returns: `N C P Q`, in x's type.

    Raises: BadInput if shapes do not fit; RuntimeError (PyTorch's) if no pixel is left.
    """
    check(x, weight, stride, padding, dilation, bias)
    kernel = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    y = F.conv2d(_padded(x, padding), *kernel, stride, 0, dilation, x.shape[1])
    return y.contiguous(memory_format=NHWC)


def data_gradient(grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    """The gradient of the map of `size` `N C H W`, from that of the result, `N C P Q`: the reference."""
    top, bottom, left, right = padding
    x = grad.new_empty((*size[:2], size[2] + top + bottom, size[3] + left + right))  # its numbers are not read
    found = _backward(grad, x, weight.to(grad.dtype), stride, dilation, (True, False, False))[0]
    return _padded(found, [-side for side in padding]).contiguous(memory_format=NHWC)


def kernel_gradient(
    grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> tuple[Tensor, Tensor]:
    """The gradients of weight, `C 1 R S`, and bias, `C`, in float32 where the maps have a half type: the reference."""
    weight = x.new_empty((x.shape[1], 1, *kernel))  # its numbers are not read
    found = _backward(grad, _padded(x, padding), weight, stride, dilation, (False, True, False))[1]
    return found.to(_exact(x)).contiguous(), grad.sum((0, 2, 3), dtype=_exact(x))


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Ints, dilation: Ints, wanted: tuple[bool, bool, bool]
) -> Any:
    geometry = (stride, (0, 0), dilation, False, (0, 0), x.shape[1])
    return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, wanted)


depthwise_conv2d = torch.library.custom_op("leanconv::depthwise_conv2d", result, mutates_args=())
input_gradient = torch.library.custom_op("leanconv::depthwise_input_gradient", data_gradient, mutates_args=())
weight_gradient = torch.library.custom_op("leanconv::depthwise_weight_gradient", kernel_gradient, mutates_args=())


@depthwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    check(x, weight, stride, padding, dilation, bias)
    return new_map(x, output_size(x.shape, weight.shape[2:], stride, padding, dilation))


@input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Tensor:
    return new_map(grad, size)


@weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[1], 1, *kernel), dtype=_exact(x)), x.new_empty(x.shape[1], dtype=_exact(x))


def new_map(like: Tensor, size: Ints) -> Tensor:
    """Uninitialised memory for a result: channels_last, of the type of `like`."""
    return torch.empty(tuple(size), dtype=like.dtype, device=like.device, memory_format=NHWC)


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the two tensors of a product, and its geometry."""
    first, second = inputs[:2]
    ctx.save_for_backward(first, second)
    ctx.geometry = inputs[3:]


def of_result(ctx: Any, grad: Tensor, data: Any = input_gradient, kernels: Any = weight_gradient) -> tuple[Any, ...]:
    """The gradient of `depthwise_conv2d`; `data`, `kernels`: what computes its two parts."""
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    found = data(grad, weight, x.shape, *ctx.geometry) if wanted[0] else None
    sums = (None, None)
    if wanted[1] or wanted[2]:
        kernel, bias = kernels(grad, x, weight.shape[2:], *ctx.geometry)
        sums = kernel.to(weight.dtype), bias.to(weight.dtype) if wanted[2] else None  # type: ignore[assignment]
    return found, *sums, None, None, None


def _of_input_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # The gradient of the data is linear in both of its maps: its own gradients are the other two operators.
    y, weight = ctx.saved_tensors
    found = depthwise_conv2d(grad, weight, None, *ctx.geometry) if ctx.needs_input_grad[0] else None
    kernel = None
    if ctx.needs_input_grad[1]:
        kernel = weight_gradient(y, grad, weight.shape[2:], *ctx.geometry)[0].to(weight.dtype)
    return found, kernel, None, None, None, None


def _of_weight_gradient(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    y, x = ctx.saved_tensors
    found = depthwise_conv2d(x, weight, bias, *ctx.geometry) if ctx.needs_input_grad[0] else None
    data = input_gradient(y, weight, x.shape, *ctx.geometry) if ctx.needs_input_grad[1] else None
    return found, data, None, None, None, None


depthwise_conv2d.register_autograd(of_result, setup_context=save)
input_gradient.register_autograd(_of_input_gradient, setup_context=save)
weight_gradient.register_autograd(_of_weight_gradient, setup_context=save)


def _flops(size: Ints, kernel: Ints) -> int:
    n, c, p, q = size
    return 2 * n * c * p * q * kernel[0] * kernel[1]


@register_flop_formula(torch.ops.leanconv.depthwise_conv2d)
def _(x: Any, weight: Any, *rest: Any, out_shape: Any = None, **named: Any) -> int:
    return _flops(out_shape, weight[2:])


@register_flop_formula(torch.ops.leanconv.depthwise_input_gradient)
def _(grad: Any, weight: Any, *rest: Any, **named: Any) -> int:
    return _flops(grad, weight[2:])


@register_flop_formula(torch.ops.leanconv.depthwise_weight_gradient)
def _(grad: Any, x: Any, kernel: Any, *rest: Any, **named: Any) -> int:
    return _flops(grad, kernel)


casts_its_map(depthwise_conv2d)
