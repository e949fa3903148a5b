"""Channels in another order."""

from torch import Tensor

from leanconv.ops.fx import leaf_function
from leanconv.ops.layout import is_channels_last


@leaf_function
def take(x: Tensor, index: Tensor) -> Tensor:
    """Channel `index[j]` of `N C H W` becomes channel j, in one copy that keeps channels_last."""
    if is_channels_last(x):
        return x.permute(0, 2, 3, 1).index_select(3, index).permute(0, 3, 1, 2)
    return x.index_select(1, index)


@leaf_function
def deal(x: Tensor, hands: int) -> Tensor:
    """Deal the channels out like cards: `N (C/hands hands) H W -> N (hands C/hands) H W`."""
    if is_channels_last(x):
        rows = x.permute(0, 2, 3, 1).unflatten(3, (-1, hands))  # N C H W -> N H W C/hands hands
        return rows.transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return x.unflatten(1, (-1, hands)).transpose(1, 2).flatten(1, 2)
