"""Layouts of maps and weights that kernels take: dense channels, evenly spaced pixels; packed weights."""

import torch
from torch import Tensor


def pixel_stride(x: Tensor) -> int:
    """Numbers from one pixel to the next if all pixels of a sample are evenly spaced with dense channels; else 0."""
    _, c, h, w = x.shape
    _, sc, sh, sw = x.stride()
    if c > 1 and sc != 1:
        return 0
    if w > 1:
        return sw if sw >= c and (h <= 1 or sh == w * sw) else 0
    pixel = sh if h > 1 else c
    return pixel if pixel >= c else 0


MOST_PLANES = 4  # channels of an image that a kernel reads plane by plane


def in_planes(x: Tensor) -> bool:
    """Whether `x` is an image with few channels in dense `N C H W`, as most callers pass it."""
    return 1 < x.shape[1] <= MOST_PLANES and x.is_contiguous() and not pixel_stride(x)


def new_map(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uninitialised memory for an output: `N C H W`, channels_last, dense."""
    return torch.empty_strided((n, c, h, w), (h * w * c, 1, w * c, c), dtype=dtype)
