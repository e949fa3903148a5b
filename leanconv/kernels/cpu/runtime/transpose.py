"""Copies of maps from planes (`N C H W` dense) to pixels (channels_last) and back.

PyTorch copies number by number: of 32 channels of 256×256 both copies take as long as the layer between them. Here they
go by squares (`transpose.c`; times by `python -m benchmarks.layouts`). PyTorch copies small or narrow maps, and all
maps where there is no compiler.
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.kernels.cpu.availability import why_not
from leanconv.kernels.cpu.runtime import abi
from leanconv.kernels.cpu.runtime.launch import CopyLaunch
from leanconv.kernels.cpu.runtime.tensors import new_map, pixel_stride

_SIDE = 16  # of transpose.c's squares
_LEAST = 1 << 14  # numbers; below, PyTorch's copy is as fast as a call of ours, and a narrow map's as fast as any


class Copy:
    """A copy for maps of one size. Immutable.

    Args:
        planes: whether the copy is contiguous, else channels_last.
    """

    average = False

    def __init__(self, x: Tensor, planes: bool) -> None:
        (n, c, h, w), pixels = x.shape, x.shape[2] * x.shape[3]
        inside = (pixels, c, x.stride(0), pixel_stride(x)) if planes else (c, pixels, x.stride(0), x.stride(1))
        self._structure = abi.Copy(x.itemsize, n, *inside, c * h * w, pixels if planes else c)
        self.size, self.dtype = (n, c, h, w), x.dtype
        self.strides = (c * pixels, pixels, w, 1) if planes else (c * pixels, 1, w * c, c)

    def launch(self, averages: Sequence[Tensor] = ()) -> CopyLaunch:
        """One copy; its operands are the map and the result."""
        return CopyLaunch(self._structure)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        pointers = (ctypes.c_void_p * 2)(x.data_ptr(), y.data_ptr())
        abi.library().lc_copy(ctypes.addressof(self._structure), pointers, torch.get_num_threads())
        return y


def copy_of(x: Tensor, *, planes: bool) -> Copy | None:
    """How a map like this becomes contiguous (`planes`) or channels_last; None where that is PyTorch's to do."""
    _, c, h, w = x.shape
    ready = pixel_stride(x) if planes else x.stride(3) == 1 and x.stride(2) == w
    if not ready or not x.numel() or x.itemsize not in (2, 4):
        return None
    if (x.numel() >= _LEAST and min(c, h * w) < _SIDE) or not _runs() or abi.library() is None:
        return None
    return Copy(x, planes)


def ensure_nhwc(x: Tensor) -> Tensor:
    """`x`, or its channels_last copy where its pixels are not evenly spaced. Slices of channels stay as they are."""
    if pixel_stride(x):
        return x
    return to_channels_last(x) if x.shape[1] > 1 else x.contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """The map in channels_last, copied only where it is not."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return x
    copy = copy_of(x, planes=False) if _pays(x) else None
    if copy is None:
        return x.contiguous(memory_format=torch.channels_last)
    n, c, h, w = x.shape
    return copy(x, new_map(n, c, h, w, x.dtype))


def to_contiguous(x: Tensor) -> Tensor:
    """The tensor contiguous, copied only where it is not."""
    if x.is_contiguous():
        return x
    copy = copy_of(x, planes=True) if x.dim() == 4 and _pays(x) else None
    return x.contiguous() if copy is None else copy(x, torch.empty(x.shape, dtype=x.dtype))


def _pays(x: Tensor) -> bool:
    """Whether a call of ours is faster, and copies all that the tensor is: no gradients flow through it."""
    return (
        x.numel() >= _LEAST
        and x.is_cpu
        and not (x.is_neg() or x.is_conj() or (x.requires_grad and torch.is_grad_enabled()))
    )


@functools.lru_cache(1)
def _runs() -> bool:
    return not why_not()
