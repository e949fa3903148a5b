"""BatchNorm, a residual and an activation for training, by `batch_norm_act.c`, for float32 or bfloat16 maps."""

import ctypes

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import BatchNormAct, Map, checked, runtime

# The numbers of `elementary.h`.
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2, "silu": 3, "hardswish": 4}


def _run(call: BatchNormAct, size: torch.Size, act: str, eps: float, backward: int) -> None:
    call.samples, call.channels, call.rows, call.columns = size
    call.activation, call.eps = ACTIVATIONS[act], eps
    checked(runtime().lc_batch_norm_act(ctypes.addressof(call), backward, torch.get_num_threads()))


def _map(x: Tensor | None) -> Map:
    return Map() if x is None else Map.of(x)


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, act: str, eps: float, y: Tensor,
    statistics: Tensor,
) -> None:  # fmt: skip
    """Fill `y` and `statistics` (`2 C`). Maps of one type with channels innermost; vectors dense float32."""
    call = BatchNormAct(x=_map(x), y=_map(y), residual=_map(residual), statistics=statistics.data_ptr())
    call.weight, call.bias = _address(weight), _address(bias)
    _run(call, x.shape, act, eps, 0)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, y: Tensor | None, statistics: Tensor, act: str,
    eps: float, x_grad: Tensor, residual_grad: Tensor | None, sums: Tensor,
) -> None:  # fmt: skip
    """Fill `x_grad`, `residual_grad` where the result `y` is given, and `sums` `2 C`: those of weight and bias."""
    call = BatchNormAct(x=_map(x), y=_map(y), grad=_map(grad), x_grad=_map(x_grad), residual_grad=_map(residual_grad))
    call.weight, call.bias, call.statistics, call.sums = map(_address, (weight, bias, statistics, sums))
    _run(call, x.shape, act, eps, 1)
