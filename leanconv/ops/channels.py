"""Channels in another order."""

import torch
from torch import Tensor


def take(x: Tensor, index: Tensor) -> Tensor:
    """Channel `index[j]` of `N C H W` becomes channel j, in one copy that keeps channels_last."""
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)
