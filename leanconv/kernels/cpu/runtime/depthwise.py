"""Depthwise convolutions for training: result and gradients by `depthwise.c`, for maps of float32 or bfloat16.

Sizes are arguments, so nothing is compiled for a new shape. Maps are `N C H W` with channels innermost; slices and
crops of such maps are read where they lie. Padding is multiplied as zeros: an infinite weight, or a gradient that is
not finite at the border, gives NaN there, also where a tap reads nothing but padding.
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import Depthwise, Map, checked, runtime
from leanconv.kernels.cpu.tuning.cpu import this_cpu

_LEAST = 128  # channels that are read together: fewer, and each pixel is a jump in memory
_RANGES = 16  # of rows and channels, whose sums for the gradient of weights are added in order


class Geometry:
    """The sizes of a depthwise convolution.

    Args:
        x, y: `N C H W` and `N C P Q`, the sizes of input and output.
        kernel, stride, dilation: pairs. padding: top, bottom, left, right; negative ones crop.
    """

    def __init__(
        self,
        x: Sequence[int],
        y: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        self.sizes = _sizes(*(tuple(each) for each in (x, y, kernel, stride, padding, dilation)))


@functools.lru_cache(4096)  # a training step asks for the same ones again
def _sizes(
    x: tuple[int, ...],
    y: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """The numbers of `Depthwise` in order, with the channels and rows that are computed together."""
    (n, c, h, w), (p, q) = x, y[2:]
    # Columns and rows of the ring that a task keeps in the cache: the same for the result and the sums of weights.
    columns, rows = (q - 1) * stride[1] + dilation[1] * (kernel[1] - 1) + 1, dilation[0] * (kernel[0] - 1) + 1
    fits = this_cpu().l1 // (4 * max(1, columns) * min(rows, max(h, 1))) // 16 * 16
    blocks = -(-c // max(fits, _LEAST))
    block = -(-c // max(1, blocks) // 16) * 16
    groups = max(1, min(n * p, -(-_RANGES // max(1, blocks))))
    return (n, c, h, w, p, q, *kernel, *stride, *dilation, padding[0], padding[2], max(block, 16), groups)


def _call(x: Tensor, y: Tensor, geometry: Geometry, *pointers: Tensor | None) -> Depthwise:
    addresses = [None if t is None else t.data_ptr() for t in pointers]
    return Depthwise(Map.of(x), Map.of(y), *addresses, *[None] * (4 - len(addresses)), *geometry.sizes)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, geometry: Geometry) -> None:
    """Fill `y`. `x`: of the same type; both with channels innermost. `weight` `C 1 R S`, `bias` `C`: float32, dense."""
    call = _call(x, y, geometry, weight, bias)
    checked(runtime().lc_depthwise(ctypes.addressof(call), 0, torch.get_num_threads()))


def input_gradient(grad: Tensor, weight: Tensor, x: Tensor, geometry: Geometry) -> None:
    """Fill `x` with its gradient, from that of the result."""
    call = _call(x, grad, geometry, weight)
    checked(runtime().lc_depthwise(ctypes.addressof(call), 1, torch.get_num_threads()))


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> None:
    """Fill `weight` `C 1 R S` and `bias` `C` (float32, dense) with their gradients."""
    call = _call(x, grad, geometry, None, None, weight, bias)
    checked(runtime().lc_depthwise_weight(ctypes.addressof(call), torch.get_num_threads()))
