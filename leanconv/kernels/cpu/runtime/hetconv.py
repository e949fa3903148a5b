"""HetConv for training, by `hetconv.c`, for maps of float32 or bfloat16.

Of bfloat16 the products are those of weights in bfloat16 too where the machine has such products (AVX512-BF16). Padding
is multiplied as zeros: where a number of x or of a gradient is not finite, the gradients of weights of its channel may
all be NaN.
"""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import HetConv, Map, checked, runtime

PARTS = (2, 4, 8)  # they divide every vector


class Geometry(NamedTuple):
    """Each a pair: rows, columns."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Groups(NamedTuple):
    """How many groups there are, whether they are blocks, and `full`: a number for a filter's own channels too."""

    part: int
    blocked: bool = False
    full: bool = False


def _call(x: Tensor, y: Tensor, groups: Groups, geometry: Geometry, pointers: Sequence[Tensor | None]) -> HetConv:
    """The structure; `pointers`: spatial, pointwise and bias, then where the gradients of those go."""
    (n, c, h, w), (_, o, rows, columns) = x.shape, y.shape
    kernel, stride, (top, left), dilation = geometry
    given = (None if each is None else each.data_ptr() for each in pointers)
    sizes = (n, c, o, h, w, rows, columns, groups.part, *kernel, *stride, *dilation, top, left, *groups[1:])
    return HetConv(Map.of(x), Map.of(y), *given, *sizes)


def forward(
    x: Tensor, spatial: Tensor | None, pointwise: Tensor, bias: Tensor | None, groups: Groups, geometry: Geometry,
    y: Tensor,
) -> None:  # fmt: skip
    """Fill `y`. Maps of one type with channels innermost; weights float32, dense. `spatial` None: a 1×1 alone."""
    call = _call(x, y, groups, geometry, (spatial, pointwise, bias, None, None, None))
    checked(runtime().lc_hetconv(ctypes.addressof(call), 0, torch.get_num_threads()))


def data_gradient(
    grad: Tensor, spatial: Tensor | None, pointwise: Tensor, groups: Groups, geometry: Geometry, x_grad: Tensor
) -> None:
    """Fill `x_grad`."""
    call = _call(x_grad, grad, groups, geometry, (spatial, pointwise, None, None, None, None))
    checked(runtime().lc_hetconv(ctypes.addressof(call), 1, torch.get_num_threads()))


def weight_gradient(grad: Tensor, x: Tensor, groups: Groups, geometry: Geometry, sums: Sequence[Tensor | None]) -> None:
    """Fill `sums` (float32, dense): the gradients of spatial, of pointwise, and of the bias, unless that is None."""
    call = _call(x, grad, groups, geometry, (None, None, None, *sums))
    checked(runtime().lc_hetconv_weight(ctypes.addressof(call), torch.get_num_threads()))
