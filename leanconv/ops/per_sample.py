"""Convolution with one kernel for each sample: what the dynamic operators end in."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.padded import like, pad, sides


def per_sample_conv2d(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: Any, dilation: tuple[int, int], groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:  # fmt: skip
    """y[n] = conv2d(x[n], weight[n]): `N C H W`, `N O C/G R S -> N O P Q`.

    Runs as one convolution in G·N groups. An exported program unfolds the input and multiplies matrices instead: the
    number of groups of an exported convolution is fixed, its batch is not. So do 1×1 kernels, which need no unfolding.
    """
    n, o, taps = x.shape[0], weight.shape[1], (weight.shape[-2], weight.shape[-1])
    if padding_mode != "zeros" or padding == "same":
        x, padding = pad(x, sides(taps, padding, dilation), padding_mode), (0, 0)
    if torch.compiler.is_exporting() or n == 0 or (taps == (1, 1) and groups == 1):
        return like(_unfolded(x, weight, stride, padding, dilation, groups), x)
    y = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), None, stride, padding, dilation, groups * n
    )  # 1 N·C H W -> 1 N·O P Q
    return like(y.view(n, o, *y.shape[2:]), x)


def _unfolded(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Tensor:  # fmt: skip
    (r, s), (sh, sw), (dh, dw) = weight.shape[-2:], stride, dilation
    x = pad(x, [padding[1], padding[1], padding[0], padding[0]])
    p, q = (x.shape[2] - dh * (r - 1) - 1) // sh + 1, (x.shape[3] - dw * (s - 1) - 1) // sw + 1
    taps = [
        x[:, :, i * dh : i * dh + (p - 1) * sh + 1 : sh, j * dw : j * dw + (q - 1) * sw + 1 : sw]
        for i in range(r)
        for j in range(s)
    ]
    n, o, cg = weight.shape[:3]
    patches = torch.stack(taps, 2).reshape(n, groups, cg * r * s, p * q)  # N C R·S P Q -> N G C/G·R·S P·Q
    y = weight.reshape(n, groups, o // groups, cg * r * s) @ patches  # N G O/G P·Q
    return y.reshape(n, o, p, q)
