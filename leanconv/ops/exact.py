"""Averages, gates and choices in float32, whatever the features around them are stored in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """`x`, in float32 if it has a half type."""
    return x.float() if x.dtype.itemsize == 2 else x


def exact_mean(x: Tensor, *, keepdim: bool = False) -> Tensor:
    """The average over height and width, summed and kept in float32 for half types: `N C H W -> N C` (or `N C 1 1`)."""
    return x.mean((2, 3), keepdim=keepdim, dtype=torch.float32 if x.dtype.itemsize == 2 else x.dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Where autocast is on for `x`'s device, off; a graph that was traced without it has no trace of this."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
