"""Channels in another order."""

from torch import Tensor

from leanconv.ops.layout import is_channels_last


def take(x: Tensor, index: Tensor) -> Tensor:
    """Channel `index[j]` of `N C H W` becomes channel j, in one copy that keeps channels_last."""
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)
