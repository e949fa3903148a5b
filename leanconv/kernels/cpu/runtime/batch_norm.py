"""BatchNorm with a ReLU, for training: the result and its gradients by `batch_norm.c`, for float32 or bfloat16."""

import ctypes

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import BatchNorm, Map, checked, runtime


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, y: Tensor, mean: Tensor, var: Tensor, eps: float, relu: bool
) -> None:
    """Fill `y`, `mean` and `var` (`C`). Maps: `evenly_spaced`, of one type; vectors: float32, dense."""
    call = _call(x, y, None, (weight, bias, mean, var, None, None), eps, relu)
    checked(runtime().lc_batch_norm(ctypes.addressof(call), 0, torch.get_num_threads()))


def gradients(
    grad: Tensor, x: Tensor, vectors: tuple[Tensor | None, ...], found: tuple[Tensor, ...], eps: float, relu: bool
) -> None:
    """Fill the gradients of x, weight and bias. `vectors`: weight, bias, and the mean and var that `forward` made."""
    x_grad, *sums = found
    call = _call(x, grad, x_grad, (*vectors, *sums), eps, relu)
    checked(runtime().lc_batch_norm(ctypes.addressof(call), 1, torch.get_num_threads()))


def _call(
    x: Tensor, y: Tensor, x_grad: Tensor | None, vectors: tuple[Tensor | None, ...], eps: float, relu: bool
) -> BatchNorm:
    n, c, h, w = x.shape
    maps = [_map(x), _map(y), Map() if x_grad is None else _map(x_grad)]
    return BatchNorm(*maps, *(None if v is None else v.data_ptr() for v in vectors), n * h * w, eps, c, relu)


def _map(x: Tensor) -> Map:
    """The map as one row of pixels: the step between them is that of the first dimension that has two."""
    made = Map.of(x)
    n, _, h, w = x.shape
    made.pixel = x.stride(3) if w > 1 else x.stride(2) if h > 1 else x.stride(0)
    return made
