"""A branch of depthwise convolutions and a 1×1 for training, by `separable_branch.c`, for maps of float32 or bfloat16.

Padding is multiplied as zeros, and pixels of few channels share vectors: where a number of x or of a gradient is not
finite, the gradients of weights of its channel may all be NaN.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime.training_abi import Branch, Map, checked, runtime


def _call(
    maps: Sequence[Map], sizes: Sequence[int], stencils: Sequence[Tensor], geometry: Sequence[int],
    pointers: Sequence[Tensor | None], sums: Sequence[Tensor | None],
) -> Branch:  # fmt: skip
    """The structure; `pointers`: matrix and bias; `sums`: where the gradients of the stencils and of those go."""
    pair, numbers = ctypes.c_void_p * 2, ctypes.c_int32 * 2
    given, found = ([None if t is None else t.data_ptr() for t in each] for each in (pointers, sums))
    tops, lefts, highs, wides = (geometry[i::4] for i in range(4))
    kernel = [weight.shape[2] for weight in stencils], [weight.shape[3] for weight in stencils]
    return Branch(
        *maps,
        pair(*(weight.data_ptr() for weight in stencils)),
        *given,
        pair(*found[:-2]),
        *found[-2:],
        *sizes,
        len(stencils),
        *(numbers(*each) for each in (*kernel, highs, wides, tops, lefts)),
    )


def forward(
    x: Tensor, stencils: Sequence[Tensor], matrix: Tensor, bias: Tensor | None, geometry: Sequence[int], y: Tensor
) -> None:
    """Fill `y`. Maps of one type with channels innermost; weights float32, dense; geometry as in `ops`."""
    n, c, h, w = x.shape
    maps = (Map.of(x), Map.of(y), Map())
    call = _call(maps, (n, c, matrix.shape[0], h, w), stencils, geometry, (matrix, bias), [None] * (len(stencils) + 2))
    checked(runtime().lc_branch(ctypes.addressof(call), torch.get_num_threads()))


def gradients(
    grad: Tensor, x: Tensor, stencils: Sequence[Tensor], matrix: Tensor, geometry: Sequence[int], x_grad: Tensor | None,
    sums: Sequence[Tensor],
) -> None:  # fmt: skip
    """Fill `x_grad`, and `sums` (float32, dense): the gradients of each stencil, of the matrix and of its bias."""
    n, c, h, w = x.shape
    maps = (Map.of(x), Map.of(grad), Map() if x_grad is None else Map.of(x_grad))
    call = _call(maps, (n, c, matrix.shape[0], h, w), stencils, geometry, (matrix, None), sums)
    checked(runtime().lc_branch_gradients(ctypes.addressof(call), torch.get_num_threads()))
