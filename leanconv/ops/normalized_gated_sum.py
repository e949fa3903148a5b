"""Norms, ReLU and gated sum of two branches in one operator that trains: the end of SPConv and of SPLConv.

    a' = act((a - mean)·weight/√(variance + eps) + bias)   mean, variance: of the batch, per channel; act: ReLU or none
    b' likewise without activation, or b as it is where it has no norm
    y = g·a' + (1 - g)·b'                                  g = sigmoid(average a' - average b'), per sample and channel

The branches alone are kept for the gradient, neither a' nor b'. The reference is here; `kernels.training` gives the CPU
its kernel. It has a fake kernel (it compiles with `fullgraph=True`) and a gradient; that gradient has none. Arguments:
maps `N C H W` of one type; weights and biases `C`; `relu`; `eps` of both norms. Maps that result are channels_last.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.gated_sum_training import check as check_maps
from leanconv.ops.gated_sum_training import new_map

NHWC = torch.channels_last
Floats = Sequence[float]
Sums = tuple[Tensor, Tensor, Tensor]


def check(a: Tensor, b: Tensor, *vectors: Tensor | None) -> None:
    """Raise BadInput if the maps are not alike, or a weight or bias has not one number for each channel."""
    check_maps(a, b)
    for vector in vectors:
        if vector is not None and list(vector.shape) != [a.shape[1]]:
            raise BadInput(
                f"norms of maps with {a.shape[1]} channels take as many weights and biases, got {list(vector.shape)}"
            )
    if a.numel() <= a.shape[1]:
        raise BadInput(f"a norm in training takes more than one number per channel, got maps {list(a.shape)}")


def result(
    a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None, relu: bool,
    eps: Floats,
) -> Sums:  # fmt: skip
    """y; g `N C`; mean and variance (biased) of a and b, `4 C` (0 and 1 where b has no norm): the reference."""
    check(a, b, weight, bias, weight_b, bias_b)
    exact = _exact(a)
    statistics = torch.cat([_moments(a.to(exact)), _moments(b.to(exact)) if weight_b is not None else _none(a, exact)])
    first = _normalized(a.to(exact), statistics[:2], weight, bias, eps[0])
    first = first.relu() if relu else first
    second = _normalized(b.to(exact), statistics[2:], weight_b, bias_b, eps[1])
    gate = torch.sigmoid(first.mean((2, 3)) - second.mean((2, 3)))
    y = torch.lerp(second, first, gate[:, :, None, None])
    return y.to(a.dtype).contiguous(memory_format=NHWC), gate, statistics


def gradient(
    grad: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Tensor | None, bias_b: Tensor | None,
    gate: Tensor, statistics: Tensor, relu: bool, eps: Floats,
) -> Sums:  # fmt: skip
    """Gradients of a and b, and of weight, bias, weight_b, bias_b as `4 C` (0 where b has no norm): the reference."""
    exact, every = _exact(a), (0, 2, 3)
    wide, first, second, g = grad.to(exact), a.to(exact), b.to(exact), gate[:, :, None, None]
    normal = _normalized(first, statistics[:2], weight, bias, eps[0])
    other = _normalized(second, statistics[2:], weight_b, bias_b, eps[1])
    slope = g * (1 - g) * (wide * ((normal.relu() if relu else normal) - other)).mean((2, 3), keepdim=True)
    to_a, to_b = g * wide + slope, (1 - g) * wide - slope
    if relu:
        to_a = to_a * (normal > 0)
    sums = []
    found = []
    for x, to, moments, w, small in (
        (first, to_a, statistics[:2], weight, eps[0]),
        (second, to_b, statistics[2:], weight_b, eps[1]),
    ):
        if w is None:
            found.append(to)
            sums += [torch.zeros_like(moments[0])] * 2
            continue
        root = (moments[1] + small).rsqrt()[:, None, None]
        plain = (x - moments[0][:, None, None]) * root
        sums += [(to * plain).sum(every), to.sum(every)]
        flat = (sums[-1][:, None, None] + plain * sums[-2][:, None, None]) * (x.shape[1] / x.numel())
        found.append(w.to(exact)[:, None, None] * root * (to - flat))
    maps = [each.to(grad.dtype).contiguous(memory_format=NHWC) for each in found]
    return maps[0], maps[1], torch.stack(sums)


def _moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return torch.stack([mean, variance])


def _none(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The mean and the variance of a map that is left as it is."""
    return torch.stack([x.new_zeros(x.shape[1], dtype=dtype), x.new_ones(x.shape[1], dtype=dtype)])


def _normalized(x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if weight is None or bias is None:
        return x
    scale = weight.to(x.dtype) * (moments[1] + eps).rsqrt()
    return (x - moments[0][:, None, None]) * scale[:, None, None] + bias.to(x.dtype)[:, None, None]


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


normalized_gated_sum = torch.library.custom_op("leanconv::normalized_gated_sum", result, mutates_args=())
normalized_gated_sum_gradient = torch.library.custom_op(
    "leanconv::normalized_gated_sum_gradient", gradient, mutates_args=()
)


@normalized_gated_sum.register_fake
def _(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor, weight_b: Any, bias_b: Any, relu: bool, eps: Floats) -> Sums:
    check(a, b, weight, bias, weight_b, bias_b)
    exact = _exact(a)
    return new_map(a), a.new_empty(a.shape[:2], dtype=exact), a.new_empty((4, a.shape[1]), dtype=exact)


@normalized_gated_sum_gradient.register_fake
def _(grad: Tensor, a: Tensor, *rest: Any) -> Sums:
    return new_map(grad), new_map(grad), a.new_empty((4, a.shape[1]), dtype=_exact(a))


def save(ctx: Any, inputs: tuple[Any, ...], output: Sums) -> None:
    """Keep the branches, the norms' numbers and what the result found."""
    ctx.save_for_backward(*inputs[:6], *output[1:])
    ctx.relu, ctx.eps = inputs[6:]
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx: Any, grad: Tensor, *_: Any, every: Any = normalized_gated_sum_gradient) -> tuple[Any, ...]:
    """The gradient of `normalized_gated_sum`; `every`: what computes it."""
    saved = ctx.saved_tensors  # once: a checkpoint computes them again when they are asked for
    to_a, to_b, sums = every(grad, *saved, ctx.relu, ctx.eps)
    return to_a, to_b, *of_norms(sums, saved[2:6]), None, None


def of_norms(sums: Tensor, norms: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of weight, bias, weight_b and bias_b, of their types; None for what is not there."""
    return [None if p is None else s.to(p.dtype) for p, s in zip(norms, sums.unbind(), strict=True)]


normalized_gated_sum.register_autograd(backward, setup_context=save)
