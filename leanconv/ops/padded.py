"""`nn.Conv2d`'s forward for a kernel that was just computed: every padding, every padding mode."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.layout import like


def sides(kernel: tuple[int, int], padding: Any, dilation: tuple[int, int]) -> list[int]:
    """Conv2d's `padding` as `F.pad` takes it, `[left, right, top, bottom]`; "same" puts the larger half behind."""
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding != "same":
        return [padding[1], padding[1], padding[0], padding[0]]
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]


def pad(x: Tensor, amounts: list[int], mode: str = "zeros") -> Tensor:
    """`F.pad` in Conv2d's words, which keeps channels_last (its modes other than zeros forget it)."""
    if not any(amounts):
        return x
    padded = F.pad(x, amounts, mode="constant" if mode == "zeros" else mode)
    return like(padded, x)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int],
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """What `nn.Conv2d` of these arguments computes with `weight`: `N C H W`, `O C/G R S -> N O P Q`."""
    if padding_mode != "zeros":
        kernel = (weight.shape[-2], weight.shape[-1])
        x, padding = pad(x, sides(kernel, padding, dilation), padding_mode), (0, 0)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
