"""Convolution with one kernel for each sample: what the dynamic operators end in."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.forms import out_size
from leanconv.ops.fx import leaf_function
from leanconv.ops.layout import like
from leanconv.ops.padded import pad, sides

# CPU time of a training step: quarter-width VGG-16 with ODConv (CIFAR, batch 128), one thread of an AMD EPYC.
# 690 ms with the three forms, 2,629 ms with grouped convolutions alone, and 201 ms dense:
# python -m benchmarks.classification "DIR?val=0" --only-steps 12 --operators conv odconv
# "products" wins where an unfolded sample is smaller than its kernel. "outputs" wins under two conditions. The kernels
# of the batch exceed the caches: CACHED numbers. And n kernels on few pixels cost less than their write and read.
CACHED = 2**22
MIXED_PIXELS = 64


def mixes_outputs(n: int, pixels: int, weight: torch.Size | tuple[int, ...], groups: int = 1) -> bool:
    """Whether `mixed_conv2d` adds outputs, not kernels: `n` samples, P·Q `pixels` each, kernels `K O C/G R S`."""
    return groups == 1 and weight[0] * pixels <= MIXED_PIXELS and n * math.prod(weight[1:]) >= CACHED


@leaf_function
def mixed_conv2d(
    x: Tensor,
    weight: Tensor,
    mixture: Tensor | None,
    taps: Tensor | None,
    stride: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int],
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Tensor:
    """y[n] = conv2d(x[n], taps[n] · Σ_k mixture[n,k] · weight[k]): `N C H W -> N O P Q`.

    Args:
        x: `N C H W`.
        weight: `K O C/G R S`.
        mixture: `N K`; None only for K = 1.
        taps: `N 1 1 R S`, or None for ones.
    MACs: N·P·Q·O·(C/G)·R·S, and N·K·O·(C/G)·R·S to mix the kernels; where `mixes_outputs` K·N·P·Q·O·(C/G)·R·S.
    """
    if not _open_sizes() and x.shape[0]:
        pixels = math.prod(_out_size(x, (weight.shape[-2], weight.shape[-1]), stride, padding, dilation))
        lone = mixture is None and groups == 1 and pixels < weight.shape[1]  # its outputs are the mixture
        if lone or mixes_outputs(x.shape[0], pixels, weight.shape, groups):
            x, padding = _padded(x, weight, padding, dilation, padding_mode)
            return like(_summed_outputs(x, weight, mixture, taps, stride, padding, dilation), x)
    kernel = weight
    if mixture is not None:
        kernel = (mixture.to(weight.dtype) @ weight.flatten(1)).view(-1, *weight.shape[1:])
    elif taps is not None:
        kernel = weight.expand(x.shape[0], -1, -1, -1, -1)
    return per_sample_conv2d(x, kernel, stride, padding, dilation, groups, padding_mode, taps)


@leaf_function
def per_sample_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int],
    groups: int = 1,
    padding_mode: str = "zeros",
    taps: Tensor | None = None,
) -> Tensor:
    """y[n] = conv2d(x[n], taps[n] · weight[n]): `N C H W`, `N O C/G R S`, `N 1 1 R S` or None `-> N O P Q`.

    Runs as one convolution in G·N groups. Where the unfolded input is smaller than the kernel, runs as one matrix
    product a sample. An exported program always multiplies matrices: the number of groups of an exported convolution
    is fixed, its batch is not. So do 1×1 kernels, which need no unfolding.
    """
    n, o, kernel = x.shape[0], weight.shape[1], (weight.shape[-2], weight.shape[-1])
    x, padding = _padded(x, weight, padding, dilation, padding_mode)
    fixed = _open_sizes() or n == 0
    small = not fixed and math.prod(_out_size(x, kernel, stride, padding, dilation)) < o // groups
    if small and kernel != (1, 1):
        return like(_products(x, weight, taps, stride, padding, dilation, groups), x)
    if taps is not None:
        weight = weight * taps.to(weight.dtype)
    if fixed or (kernel == (1, 1) and groups == 1):
        return like(_unfolded(x, weight, stride, padding, dilation, groups), x)
    y = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), None, stride, padding, dilation, groups * n
    )  # 1 N·C H W -> 1 N·O P Q
    return like(y.view(n, o, *y.shape[2:]), x)


def _open_sizes() -> bool:
    """Whether a program with open sizes is being exported or traced: no branch may depend on them."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def _padded(x: Tensor, weight: Tensor, padding: Any, dilation: tuple[int, int], mode: str) -> tuple[Tensor, Any]:
    """`x` and what zeros are left to put around it, by numbers."""
    if mode == "zeros" and padding != "same":
        return x, padding
    return pad(x, sides((weight.shape[-2], weight.shape[-1]), padding, dilation), mode), (0, 0)


def _out_size(
    x: Tensor, kernel: tuple[int, int], stride: tuple[int, int], padding: Any, dilation: tuple[int, int]
) -> tuple[int, int]:
    """P and Q."""
    left, right, top, bottom = sides(kernel, padding, dilation)
    return out_size(x.shape[2], x.shape[3], kernel, stride, dilation, (top, bottom, left, right))


def _patches(
    x: Tensor,
    kernel: tuple[int, int],
    taps: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """`N C H W -> N C·R·S P·Q`, each tap times its weight in `N 1 1 R S`."""
    if kernel == (1, 1) and padding == (0, 0):
        patches = x[:, :, :: stride[0], :: stride[1]].flatten(2)
    else:
        patches = F.unfold(x, kernel, dilation, padding, stride)
    if taps is None:
        return patches
    weights = taps.to(x.dtype).reshape(-1, 1, math.prod(kernel), 1)
    return (patches.unflatten(1, (-1, math.prod(kernel))) * weights).flatten(1, 2)


def _products(
    x: Tensor,
    weight: Tensor,
    taps: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """One matrix product a sample (and group): the taps' weights on the input, which is smaller than the kernels."""
    (n, o), kernel = weight.shape[:2], (weight.shape[-2], weight.shape[-1])
    patches = _patches(x, kernel, taps, stride, padding, dilation)
    y = weight.reshape(n * groups, o // groups, -1) @ patches.reshape(n * groups, -1, patches.shape[2])
    return y.reshape(n, o, *_out_size(x, kernel, stride, padding, dilation))  # N·G O/G P·Q -> N O P Q


def _summed_outputs(
    x: Tensor,
    weight: Tensor,
    mixture: Tensor | None,
    taps: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Every kernel on every sample in one matrix product, then the mixture of the outputs; no mixed kernel."""
    (k, o), kernel, n = weight.shape[:2], (weight.shape[-2], weight.shape[-1]), x.shape[0]
    p, q = _out_size(x, kernel, stride, padding, dilation)
    patches = _patches(x, kernel, taps, stride, padding, dilation).transpose(1, 2).flatten(0, 1)  # N·P·Q C·R·S
    y = (patches @ weight.reshape(k * o, -1).t()).view(n, p * q, k, o)
    y = y[:, :, 0] if mixture is None else (y * mixture.to(y.dtype).view(n, 1, k, 1)).sum(2, dtype=y.dtype)
    return y.view(n, p, q, o).permute(0, 3, 1, 2)  # N P·Q O -> N O P Q, channels_last


def _unfolded(
    x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int], groups: int
) -> Tensor:
    (r, s), (sh, sw), (dh, dw) = weight.shape[-2:], stride, dilation
    x = pad(x, [padding[1], padding[1], padding[0], padding[0]])
    p, q = out_size(x.shape[2], x.shape[3], (r, s), stride, dilation, (0, 0, 0, 0))
    taps = [
        x[:, :, i * dh : i * dh + (p - 1) * sh + 1 : sh, j * dw : j * dw + (q - 1) * sw + 1 : sw]
        for i in range(r)
        for j in range(s)
    ]
    n, o, cg = weight.shape[:3]
    patches = torch.stack(taps, 2).reshape(n, groups, cg * r * s, p * q)  # N C R·S P Q -> N G C/G·R·S P·Q
    y = weight.reshape(n, groups, o // groups, cg * r * s) @ patches  # N G O/G P·Q
    return y.reshape(n, o, p, q)
