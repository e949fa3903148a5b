"""Norms, ReLU and gated sum of two branches for training, by `normalized_gated_sum.c`, for float32 or bfloat16."""

import ctypes

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import Map, NormalizedGatedSum, checked, runtime

Norms = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # weight and bias of both; dense float32


def _call(
    maps: list[Map], norms: Norms, gate: Tensor, statistics: Tensor, sums: Tensor | None, eps: list[float]
) -> NormalizedGatedSum:
    addresses = [None if t is None else t.data_ptr() for t in norms]
    pair = ctypes.c_void_p * 2
    return NormalizedGatedSum(
        *maps,
        pair(*addresses[::2]),
        pair(*addresses[1::2]),
        gate.data_ptr(),
        statistics.data_ptr(),
        None if sums is None else sums.data_ptr(),
        (ctypes.c_double * 2)(*eps),
    )


def _run(call: NormalizedGatedSum, size: torch.Size, relu: bool, backward: int) -> None:
    call.samples, call.channels, call.rows, call.columns = size
    call.relu = relu
    checked(runtime().lc_normalized_gated_sum(ctypes.addressof(call), backward, torch.get_num_threads()))


def forward(
    a: Tensor, b: Tensor, norms: Norms, relu: bool, eps: list[float], y: Tensor, gate: Tensor, statistics: Tensor
) -> None:
    """Fill `y`, `gate` (`N C`) and `statistics` (`4 C`). Maps `N C H W` of one type with channels innermost."""
    maps = [*map(Map.of, (a, b, y)), Map(), Map()]
    _run(_call(maps, norms, gate, statistics, None, eps), a.shape, relu, 0)


def gradients(
    grad: Tensor, a: Tensor, b: Tensor, norms: Norms, gate: Tensor, statistics: Tensor, relu: bool, eps: list[float],
    a_grad: Tensor, b_grad: Tensor, sums: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients of both maps, and `sums` `4 C`: those of weight and bias of the first norm and the second."""
    maps = [*map(Map.of, (a, b, grad, a_grad, b_grad))]
    _run(_call(maps, norms, gate, statistics, sums, eps), a.shape, relu, 1)
