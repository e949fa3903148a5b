"""Maps as the kernels take them: float32, channels side by side, pixels evenly spaced; and packed weights."""

from collections.abc import Sequence

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


def even(x: Tensor) -> Tensor:
    """`x`, or its channels_last copy where its pixels are not evenly spaced. Slices of channels stay as they are."""
    if pixel_stride(x):
        return x
    return x.contiguous(memory_format=torch.channels_last) if x.shape[1] > 1 else x.contiguous()


MOST_PLANES = 4  # channels of an image that a kernel reads plane by plane


def in_planes(x: Tensor) -> bool:
    """Whether `x` is an image as most callers bring it: few channels, one plane after the other (`N C H W` dense)."""
    return 1 < x.shape[1] <= MOST_PLANES and x.is_contiguous() and not pixel_stride(x)


def new_map(n: int, c: int, h: int, w: int) -> Tensor:
    """An output to be filled: `N C H W`, channels_last, dense."""
    return torch.empty_strided((n, c, h, w), (h * w * c, 1, w * c, c))


def pack_projection(weight: Tensor, block: int) -> Tensor:
    """`O C -> O/block C block`, zeros behind the last channel."""
    o, c = weight.shape
    blocks = -(-o // block)
    packed = torch.zeros(blocks * block, c)
    packed[:o] = weight
    return packed.view(blocks, block, c).transpose(1, 2).contiguous()


def pack_vector(vector: Tensor | None, block: int, size: int) -> Tensor:
    """`O`, zeros behind up to whole blocks; all zeros where there is none."""
    packed = torch.zeros(-(-size // block) * block)
    if vector is not None:
        packed[:size] = vector
    return packed


def pack_taps(taps: Tensor) -> Tensor:
    """`C 1 R S -> R·S C`, with C rounded up to 16."""
    c = taps.shape[0]
    packed = torch.zeros(taps[0].numel(), -(-c // 16) * 16)
    packed[:, :c] = taps.reshape(c, -1).T
    return packed


def sizes_key(maps: Sequence[Tensor | None]) -> tuple[object, ...]:
    """What a program depends on: the sizes and steps of the maps."""
    return tuple([None if x is None else (x.shape, x.stride()) for x in maps])
