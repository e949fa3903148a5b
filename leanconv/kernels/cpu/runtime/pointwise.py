"""1×1 convolutions of few channels for training, by `pointwise.c`, for maps of float32 or bfloat16."""

import ctypes

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import Map, Pointwise, checked, runtime

_RANGES = 16  # of pixels, whose sums for the gradient of weights are added in order


def _call(x: Tensor, y: Tensor, pointers: list[Tensor | None], strides: tuple[int, int]) -> Pointwise:
    n, inputs, h, w = x.shape
    addresses = [None if t is None else t.data_ptr() for t in pointers]
    return Pointwise(Map.of(x), Map.of(y), *addresses, *strides, n, inputs, y.shape[1], h, w, _RANGES)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Fill `y`. Maps of one type with channels innermost; `weight` `O C` in any strides, `bias` `O` dense: float32."""
    out, into = weight.stride()
    call = _call(x, y, [weight, bias, None, None], (out, into))
    checked(runtime().lc_pointwise(ctypes.addressof(call), torch.get_num_threads()))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Fill `weight` `O C` and `bias` `O` (float32, dense) with their gradients."""
    call = _call(x, grad, [None, None, weight, bias], (0, 0))
    checked(runtime().lc_pointwise_weight(ctypes.addressof(call), torch.get_num_threads()))
