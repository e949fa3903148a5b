"""The softmax-pair blend for training: the result and its gradients by `gated_sum.c`, for float32 or bfloat16."""

import ctypes

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import GatedSum, Map, checked, runtime


def forward(a: Tensor, b: Tensor, y: Tensor, gate: Tensor) -> None:
    """Fill `y` and `gate` (`N C`, float32, dense). Maps `N C H W` of one type with channels innermost."""
    call = GatedSum(*map(Map.of, (a, b, y)), Map(), Map(), gate.data_ptr(), *a.shape)
    checked(runtime().lc_gated_sum(ctypes.addressof(call), 0, torch.get_num_threads()))


def gradients(grad: Tensor, a: Tensor, b: Tensor, gate: Tensor, a_grad: Tensor, b_grad: Tensor) -> None:
    """Fill the gradients of `a` and `b`, from that of the result and the gate that `forward` made."""
    call = GatedSum(*map(Map.of, (a, b, grad, a_grad, b_grad)), gate.data_ptr(), *a.shape)
    checked(runtime().lc_gated_sum(ctypes.addressof(call), 1, torch.get_num_threads()))
