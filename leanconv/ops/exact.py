"""Averages, gates and choices in float32, whatever the features around them are stored in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.fx import leaf_function
from leanconv.ops.padded import conv2d


@leaf_function
def exact(x: Tensor) -> Tensor:
    """`x`, in float32 if it has a half type."""
    return x.float() if x.dtype.itemsize == 2 else x


@leaf_function
def exact_mean(x: Tensor, *, keepdim: bool = False) -> Tensor:
    """The average over height and width, summed and kept in float32 for half types: `N C H W -> N C` (or `N C 1 1`)."""
    return x.mean((2, 3), keepdim=keepdim, dtype=torch.float32 if x.dtype.itemsize == 2 else x.dtype)


@leaf_function
def conv2d_in_own_type(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """`padded.conv2d` in the type of `weight`, also under autocast; without `geometry` a 1×1 of stride 1."""
    with without_autocast(x):
        return conv2d(x.to(weight.dtype), weight, bias, *(geometry or ((1, 1), (0, 0), (1, 1))))


@leaf_function
def linear_in_own_type(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` likewise."""
    with without_autocast(x):
        return F.linear(x.to(weight.dtype), weight, bias)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Where autocast is on for `x`'s device, off; a graph that was traced without it has no trace of this."""
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)
