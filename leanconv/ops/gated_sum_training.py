"""The softmax-pair blend as an operator of PyTorch that trains, with the gate as its second result.

Its reference is `ops.gated_sum.gated_sum`; `kernels.training` gives the CPU its kernel. It has a fake kernel (it
compiles with `fullgraph=True`) and a gradient; that gradient has none. Results are channels_last.
"""

from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput

NHWC = torch.channels_last


def check(a: Tensor, b: Tensor) -> None:
    """Raise BadInput if the maps are not alike."""
    if a.dim() != 4 or a.shape != b.shape or a.dtype != b.dtype:
        raise BadInput(
            f"a gated sum takes two maps N C H W of one size and type, got {list(a.shape)} in {a.dtype} and "
            f"{list(b.shape)} in {b.dtype}"
        )


def result(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """`g·a + (1 - g)·b` and g `N C`, g = sigmoid(average a - average b), in float32 for half types: the reference."""
    check(a, b)
    exact = _exact(a)
    gate = torch.sigmoid(a.mean((2, 3), dtype=exact) - b.mean((2, 3), dtype=exact))
    y = torch.lerp(b.to(exact), a.to(exact), gate[:, :, None, None])
    return y.to(a.dtype).contiguous(memory_format=NHWC), gate


def gradient(grad: Tensor, a: Tensor, b: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both maps, from that of the result: the reference.

    With k = g·(1 - g)·average(grad·(a - b)), that of a is g·grad + k, that of b (1 - g)·grad - k.
    """
    exact = _exact(grad)
    wide, g = grad.to(exact), gate[:, :, None, None]
    slope = g * (1 - g) * (wide * (a.to(exact) - b.to(exact))).mean((2, 3), keepdim=True)
    found = (g * wide + slope, (1 - g) * wide - slope)
    first, second = (each.to(grad.dtype).contiguous(memory_format=NHWC) for each in found)
    return first, second


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype.itemsize == 2 else x.dtype


gated_sum = torch.library.custom_op("leanconv::gated_sum", result, mutates_args=())
gated_sum_gradient = torch.library.custom_op("leanconv::gated_sum_gradient", gradient, mutates_args=())


@gated_sum.register_fake
def _(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    check(a, b)
    return new_map(a), a.new_empty(a.shape[:2], dtype=_exact(a))


@gated_sum_gradient.register_fake
def _(grad: Tensor, a: Tensor, b: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return new_map(grad), new_map(grad)


def new_map(like: Tensor) -> Tensor:
    """Uninitialised memory for a result: channels_last, of the size and type of `like`."""
    return torch.empty(like.shape, dtype=like.dtype, device=like.device, memory_format=NHWC)


def save(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def backward(ctx: Any, grad: Tensor, _: Any, both: Any = gated_sum_gradient) -> tuple[Tensor, Tensor]:
    """The gradient of `gated_sum`; `both`: what computes it."""
    found: tuple[Tensor, Tensor] = both(grad, *ctx.saved_tensors)
    return found


gated_sum.register_autograd(backward, setup_context=save)
