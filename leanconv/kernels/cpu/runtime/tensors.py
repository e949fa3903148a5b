"""Maps as the kernels take them: channels side by side, pixels evenly spaced; and packed weights."""

import torch
from torch import Tensor

from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType


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
    """Whether `x` is an image as most callers bring it: few channels, one plane after the other (`N C H W` dense)."""
    return 1 < x.shape[1] <= MOST_PLANES and x.is_contiguous() and not pixel_stride(x)


def new_map(n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An output to be filled: `N C H W`, channels_last, dense."""
    return torch.empty_strided((n, c, h, w), (h * w * c, 1, w * c, c), dtype=dtype)


def pack_projection(weight: Tensor, block: int, storage: ElementType = FLOAT32) -> Tensor:
    """`O C -> O/block C block`, zeros behind the last channel; where products take pairs of channels,
    `O C -> O/block C/2 block 2` in bfloat16.
    """
    o, c = weight.shape
    blocks, room = -(-o // block), c + c % 2 * storage.pairs
    packed = torch.zeros(blocks * block, room, dtype=torch.bfloat16 if storage.pairs else torch.float32)
    packed[:o, :c] = weight
    if storage.pairs:
        return packed.view(blocks, block, room // 2, 2).transpose(1, 2).contiguous()
    return packed.view(blocks, block, c).transpose(1, 2).contiguous()


def pack_vector(vector: Tensor | None, block: int, size: int) -> Tensor:
    """`O`, zeros behind up to whole blocks; all zeros where there is none."""
    packed = torch.zeros(-(-size // block) * block, dtype=torch.float32)
    if vector is not None:
        packed[:size] = vector
    return packed


def pack_taps(taps: Tensor) -> Tensor:
    """`C 1 R S -> R·S C`, with C rounded up to 16."""
    c = taps.shape[0]
    packed = torch.zeros(taps[0].numel(), -(-c // 16) * 16, dtype=torch.float32)
    packed[:, :c] = taps.reshape(c, -1).T
    return packed
