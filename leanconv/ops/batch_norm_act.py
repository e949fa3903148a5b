"""BatchNorm with the batch's statistics, a residual and an activation in one operator that trains.

    y = act((x - mean)·weight/√(variance + eps) + bias + residual)     mean, variance: of the batch, per channel

`act` is one of `KNOWN`; with a residual one of `OF_RESIDUALS`, whose slope the result tells. For the gradient x is kept
alone, with a residual and an activation y too (the next layer keeps it as well): neither the normalised map nor a mask.
The reference is here; `kernels.training` gives the CPU its kernel. It has a fake kernel (it compiles with
`fullgraph=True`) and gradients of any order. Like BatchNorm it counts no flops, and under autocast it keeps x's type.
Arguments: `x` and `residual` `N C H W` of one type; weight and bias `C`, None: ones and zeros. Maps that result are
channels_last.
"""

from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.activations import ACTIVATIONS
from leanconv.ops.gated_sum_training import new_map

NHWC = torch.channels_last
KNOWN = ("none", "relu", "relu6", "silu", "hardswish")
OF_RESIDUALS = ("none", "relu")  # PyTorch's own ReLU keeps its result, too; of others it may be written into


def check(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: str) -> None:
    """Raise BadInput if maps or vectors do not fit, or the activation is not known."""
    if x.dim() != 4 or (residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype)):
        other = "none" if residual is None else f"{list(residual.shape)} in {residual.dtype}"
        raise BadInput(
            f"a norm takes maps N C H W, its residual of the same size and type, got {list(x.shape)}, {other}"
        )
    for vector in (weight, bias):
        if vector is not None and list(vector.shape) != [x.shape[1]]:
            raise BadInput(
                f"a norm of {x.shape[1]} channels takes as many weights and biases, got {list(vector.shape)}"
            )
    if x.numel() <= x.shape[1]:
        raise BadInput(f"a norm in training takes more than one number per channel, got a map {list(x.shape)}")
    known = KNOWN if residual is None else OF_RESIDUALS
    if act not in known:
        where = "" if residual is None else " with a residual"
        raise BadInput(f"unknown activation {act!r} of a norm{where}; known: {', '.join(known)}")


def keeps_result(residual: Tensor | None, act: str) -> bool:
    """Whether the gradient takes the activation's slope from the result."""
    return residual is not None and act != "none"


def result(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: str, eps: float
) -> tuple[Tensor, Tensor]:
    """y, and mean and variance (biased) as `2 C`: the reference."""
    check(x, weight, bias, residual, act)
    wide = x.to(_exact(x))
    variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    statistics = torch.stack([mean, variance])
    z = _affine(_normalized(wide, statistics, eps), weight, bias)
    y = ACTIVATIONS[act](z if residual is None else z + residual)
    return y.to(x.dtype).contiguous(memory_format=NHWC), statistics


def gradient(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, y: Tensor | None, statistics: Tensor, act: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, of the residual (no numbers where `y` is None), and of weight and bias as `2 C`.

    y: the result, where it tells the activation's slope. The reference.
    """
    exact, every = _exact(x), (0, 2, 3)
    normal, through = _normalized(x.to(exact), statistics, eps), grad.to(exact)
    if y is not None:
        through = through * (y > 0)
    else:
        through = through * _slope(_affine(normal, weight, bias), act)
    sums = torch.stack([(through * normal).sum(every), through.sum(every)])
    flat = (sums[1][:, None, None] + normal * sums[0][:, None, None]) * (x.shape[1] / x.numel())
    root = (statistics[1] + eps).rsqrt() * (1 if weight is None else weight.to(exact))
    to_x = (root[:, None, None] * (through - flat)).to(grad.dtype).contiguous(memory_format=NHWC)
    if y is None:
        return to_x, grad.new_empty(0), sums
    return to_x, through.to(grad.dtype).contiguous(memory_format=NHWC), sums


def _normalized(x: Tensor, statistics: Tensor, eps: float) -> Tensor:
    return (x - statistics[0][:, None, None]) * (statistics[1] + eps).rsqrt()[:, None, None]


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * weight.to(x.dtype)[:, None, None]
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


def _slope(z: Tensor, act: str) -> Tensor:
    """The derivative of an activation."""
    if act == "silu":
        open_ = torch.sigmoid(z)
        return open_ * (1 + z * (1 - open_))
    if act == "hardswish":
        return torch.where(z < -3, 0, torch.where(z <= 3, z / 3 + 0.5, 1))
    if act == "none":
        return torch.ones_like(z)
    return ((z > 0) & (z < (6 if act == "relu6" else torch.inf))).to(z.dtype)


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


batch_norm_act = torch.library.custom_op("leanconv::batch_norm_act", result, mutates_args=())
batch_norm_act_gradient = torch.library.custom_op("leanconv::batch_norm_act_gradient", gradient, mutates_args=())


@batch_norm_act.register_fake
def _(x: Tensor, weight: Any, bias: Any, residual: Any, act: str, eps: float) -> tuple[Tensor, Tensor]:
    check(x, weight, bias, residual, act)
    return new_map(x), x.new_empty((2, x.shape[1]), dtype=_exact(x))


@batch_norm_act_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight: Any, bias: Any, y: Any, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    through = grad.new_empty(0) if y is None else new_map(grad)
    return new_map(grad), through, x.new_empty((2, x.shape[1]), dtype=_exact(x))


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep the map, the norm's numbers, and the result where it tells the activation's slope."""
    x, weight, bias, residual, ctx.act, ctx.eps = inputs
    ctx.residual = residual is not None
    ctx.save_for_backward(x, weight, bias, output[0] if keeps_result(residual, ctx.act) else None, output[1])
    ctx.mark_non_differentiable(output[1])


def backward(ctx: Any, grad: Tensor, _: Any, every: Any = batch_norm_act_gradient) -> tuple[Any, ...]:
    """The gradient of `batch_norm_act`; `every`: what computes it."""
    x, weight, bias, y, statistics = ctx.saved_tensors
    if torch.is_grad_enabled():  # it is to have a gradient itself, also by the statistics
        variance, mean = torch.var_mean(x.to(_exact(x)), (0, 2, 3), correction=0)
        every, statistics = gradient, torch.stack([mean, variance])
    to_x, through, sums = every(grad, x, weight, bias, y, statistics, ctx.act, ctx.eps)
    norms = [None if p is None else s.to(p.dtype) for p, s in zip((weight, bias), sums.unbind(), strict=True)]
    to_residual = None if not ctx.residual else grad if y is None else through
    return to_x, *norms, to_residual, None, None


batch_norm_act.register_autograd(backward, setup_context=save)
