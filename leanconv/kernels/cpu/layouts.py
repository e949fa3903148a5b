"""Copies of maps from planes (`N C H W` dense) to pixels (channels_last) and back.

PyTorch makes them number by number: 4 ms for 32 channels of 256×256, back 2 ms, as long as the layer between them;
`transpose.c` takes 0.6 ms (one Zen 4 core). Small or narrow maps, and all where there is no compiler, are PyTorch's.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels import cpu_reason
from leanconv.kernels.cpu.maps import new_map, pixel_stride
from leanconv.kernels.cpu.structures import library

_SIDE = 16  # of transpose.c: channels and pixels are at least so many
_LEAST = 1 << 14  # numbers; below, PyTorch's copy is as fast


def even(x: Tensor) -> Tensor:
    """`x`, or its channels_last copy where its pixels are not evenly spaced. Slices of channels stay as they are."""
    if pixel_stride(x):
        return x
    return to_pixels(x) if x.shape[1] > 1 else x.contiguous()


def to_pixels(x: Tensor) -> Tensor:
    """The map in channels_last, copied only where it is not."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    n, c, h, w = x.shape
    dense = x.stride(3) == 1 and x.stride(2) == w
    if not dense or (transpose := _transpose(x)) is None:
        return x.contiguous(memory_format=torch.channels_last)
    made = new_map(n, c, h, w, x.dtype)
    steps = x.stride(0), made.stride(0), c, h * w, x.stride(1), c
    transpose(x.data_ptr(), made.data_ptr(), x.itemsize, n, *steps, torch.get_num_threads())
    return made


def to_planes(x: Tensor) -> Tensor:
    """The tensor contiguous, copied only where it is not."""
    if x.is_contiguous() or x.dim() != 4:
        return x.contiguous()
    pixel = pixel_stride(x)
    if not pixel or (transpose := _transpose(x)) is None:
        return x.contiguous()
    n, c, h, w = x.shape
    made = torch.empty(x.shape, dtype=x.dtype)
    steps = x.stride(0), made.stride(0), h * w, c, pixel, h * w
    transpose(x.data_ptr(), made.data_ptr(), x.itemsize, n, *steps, torch.get_num_threads())
    return made


def _transpose(x: Tensor) -> Any:
    """The runtime's function, where it serves the map: it copies numbers as they are, and gradients do not flow."""
    _, c, h, w = x.shape
    if x.numel() < _LEAST or c < _SIDE or h * w < _SIDE or x.itemsize not in (2, 4) or not x.is_cpu:
        return None
    if x.is_neg() or (x.requires_grad and torch.is_grad_enabled()):
        return None
    lib = library() if _runs() else None
    return None if lib is None else lib.lc_transpose


@functools.lru_cache(1)
def _runs() -> bool:
    return not cpu_reason()
