"""How a map lies in memory: whether in channels_last, and as another one does."""

import torch
from torch import Tensor

from leanconv.ops.fx import leaf_function


def is_channels_last(x: Tensor) -> bool:
    """Whether `N C H W` lies in channels_last, and not in the plain order as well (one channel, one pixel)."""
    if _in_a_transform():
        return x.ndim == 4 and not x.is_contiguous() and x.permute(0, 2, 3, 1).is_contiguous()
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@leaf_function
def like(y: Tensor, x: Tensor) -> Tensor:
    """`y`, contiguous in the memory format of `x`."""
    if not is_channels_last(x):
        return y.contiguous()
    if _in_a_transform():
        return y.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return y.contiguous(memory_format=torch.channels_last)


def _in_a_transform() -> bool:
    """Whether torch.func's vmap, or grad and vmap, run us: there tensors know the plain memory format alone.

    Elsewhere the format is asked for by its name: permutations would stand in every exported program.
    """
    return torch._C._are_functorch_transforms_active()
