"""1×1 convolution as operators of PyTorch that train: the result, and the gradients of weights and bias.

    y[n,o,h,w] = bias[o] + Σ_c weight[o,c] · x[n,c,h,w]

The gradient of the data is the same operator with the weights transposed. Each operator is its reference here;
`kernels.training` gives the CPU its kernels. They have fake kernels (they compile with `fullgraph=True`), gradients of
any order, flop formulas and a rule for autocast. `x`: `N C H W`; `weight`: `O C`, of x's type or float32; `bias`: `O`
likewise. Maps that result are channels_last.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from leanconv.errors import BadInput
from leanconv.ops.autocast import casts_its_map
from leanconv.ops.depthwise import new_map

NHWC = torch.channels_last


def check(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Raise BadInput if shapes do not fit."""
    if x.dim() != 4 or weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise BadInput(
            f"a 1×1 convolution takes maps N C H W and weights O C, got {list(x.shape)} and {list(weight.shape)}"
        )
    if bias is not None and list(bias.shape) != [weight.shape[0]]:
        raise BadInput(f"a 1×1 convolution to {weight.shape[0]} channels takes as many biases, got {list(bias.shape)}")


def result(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`N O H W`, in x's type: the reference. Raises: BadInput if shapes do not fit."""
    check(x, weight, bias)
    kernel = weight.to(x.dtype)[:, :, None, None], None if bias is None else bias.to(x.dtype)
    return torch.nn.functional.conv2d(x, *kernel).contiguous(memory_format=NHWC)


def gradients(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Those of weight, `O C`, and bias, `O`, in float32 where the maps have a half type: the reference."""
    exact = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    return torch.einsum("nohw,nchw->oc", grad.to(exact), x.to(exact)), grad.sum((0, 2, 3), dtype=exact)


pointwise_conv2d = torch.library.custom_op("leanconv::pointwise_conv2d", result, mutates_args=())
weight_gradient = torch.library.custom_op("leanconv::pointwise_weight_gradient", gradients, mutates_args=())


@pointwise_conv2d.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    check(x, weight, bias)
    return new_map(x, [x.shape[0], weight.shape[0], *x.shape[2:]])


@weight_gradient.register_fake
def _(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    exact = torch.float32 if x.dtype.itemsize == 2 else x.dtype
    return x.new_empty((grad.shape[1], x.shape[1]), dtype=exact), x.new_empty(grad.shape[1], dtype=exact)


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the two tensors of a product."""
    ctx.save_for_backward(*inputs[:2])


def of_result(ctx: Any, grad: Tensor, result: Any = pointwise_conv2d, kernels: Any = weight_gradient) -> Any:
    """The gradient of `pointwise_conv2d`; `result`, `kernels`: what computes its parts."""
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    found = result(grad, weight.t(), None) if wanted[0] else None
    if not (wanted[1] or wanted[2]):
        return found, None, None
    kernel, bias = kernels(grad, x)
    return found, kernel.to(weight.dtype), bias.to(weight.dtype) if wanted[2] else None


def _of_weight_gradient(ctx: Any, weight: Tensor, bias: Tensor) -> tuple[Any, ...]:
    y, x = ctx.saved_tensors
    found = pointwise_conv2d(x, weight, bias) if ctx.needs_input_grad[0] else None
    return found, pointwise_conv2d(y, weight.t(), None) if ctx.needs_input_grad[1] else None


pointwise_conv2d.register_autograd(of_result, setup_context=save)
weight_gradient.register_autograd(_of_weight_gradient, setup_context=save)


@register_flop_formula(torch.ops.leanconv.pointwise_conv2d)
def _(x: Any, weight: Any, *rest: Any, **named: Any) -> int:
    return 2 * x[0] * x[2] * x[3] * weight[0] * weight[1]


@register_flop_formula(torch.ops.leanconv.pointwise_weight_gradient)
def _(grad: Any, x: Any, *rest: Any, **named: Any) -> int:
    return 2 * x[0] * x[1] * x[2] * x[3] * grad[1]


casts_its_map(pointwise_conv2d)
