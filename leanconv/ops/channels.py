"""Channels in another order."""

import torch
from torch import Tensor

from leanconv.errors import BadInput


def batched(x: Tensor, channels: int | None = None) -> Tensor:
    """`x`, which must be `N C H W`: of `C H W` dim 1 are rows, and rows in another order are a wrong picture, no error.

    Raises: BadInput for any other number of dimensions, and of channels where those are given: taking some of them by
        their numbers would silently leave out the rest.
    """
    if x.ndim != 4:
        raise BadInput(f"an input of shape {tuple(x.shape)} is not N C H W; type x.unsqueeze(0) for a single sample")
    if channels is not None and x.shape[1] != channels:
        raise BadInput(f"an input of shape {tuple(x.shape)} has {x.shape[1]} channels, the layer takes {channels}")
    return x


def take(x: Tensor, index: Tensor) -> Tensor:
    """Channel `index[j]` of `N C H W` becomes channel j, in one copy that keeps channels_last."""
    if batched(x).is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)
