"""BatchNorm of a batch's own statistics and a ReLU as one operator of PyTorch that trains.

    y = act((x - mean) / √(var + eps) · weight + bias)        mean, var: of each channel, over batch and pixels

Its reference is here; `kernels.training` gives the CPU its kernel. For the gradient it keeps the input alone: where the
ReLU let a number pass is computed again. It has a fake kernel (it compiles with `fullgraph=True`) and a gradient; that
gradient has none. Results are channels_last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NHWC = torch.channels_last


def result(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference. Returns: `N C H W` in x's type; mean and var (divided by the number of pixels), `C`.

    `weight`, `bias`: `C`, in float32 for half types; so are mean and var.
    """
    exact = x.to(_exact(x))
    var, mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    z = F.batch_norm(exact, mean, var, weight, bias, False, 0.0, eps)
    return (z.relu() if relu else z).to(x.dtype).contiguous(memory_format=NHWC), mean, var


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias, from that of the result: the reference."""

    def wide(v: Tensor) -> Tensor:
        return v[:, None, None]

    exact, passed, inverse = x.to(_exact(x)), grad.to(_exact(x)), (var + eps).rsqrt()
    scale = inverse if weight is None else weight * inverse
    normed = (exact - wide(mean)) * wide(inverse)
    if relu:
        z = normed if weight is None else normed * wide(weight)
        passed = passed.masked_fill((z if bias is None else z + wide(bias)) <= 0, 0.0)
    shift, product = passed.sum((0, 2, 3)), (passed * normed).sum((0, 2, 3))
    pixels = x.numel() // x.shape[1]
    found = wide(scale) * (passed - wide(shift / pixels) - normed * wide(product / pixels))
    return found.to(x.dtype).contiguous(memory_format=NHWC), product, shift


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


batch_norm = torch.library.custom_op("leanconv::batch_norm", result, mutates_args=())
batch_norm_gradient = torch.library.custom_op("leanconv::batch_norm_gradient", gradients, mutates_args=())


@batch_norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return new_map(x), _vector(x), _vector(x)


@batch_norm_gradient.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return new_map(x), _vector(x), _vector(x)


def new_map(like: Tensor) -> Tensor:
    """Uninitialised memory for a result: channels_last, of the size and type of `like`."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=NHWC)


def _vector(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=_exact(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, bias, mean, var = ctx.saved_tensors
    found, *sums = batch_norm_gradient(grad, x, weight, bias, mean, var, *ctx.options)
    kinds = zip(sums, (weight, bias), strict=True)
    return found, *(None if v is None else s.to(v.dtype) for s, v in kinds), None, None


batch_norm.register_autograd(_backward, setup_context=_save)
