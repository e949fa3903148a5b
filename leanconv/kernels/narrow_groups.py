"""Convolutions of few narrow groups as the dense convolution that they equal, for training on a CPU.

oneDNN has direct kernels for groups that fill its vectors. It multiplies narrower ones as matrices, which are cut out
of the map tap by tap. Its dense kernel does up to four times the multiplications in less time. Forward and backward,
batch 4, one thread of an EPYC (AVX2, 8 lanes), ms of the layer and of its dense form, channels_last:

    HetConv(part=4)   8 channels, 128 px   34.3    9.8      two channels in a group
                      16, 64 px            13.3    8.5      four
                      32, 64 px            24.3   27.0      eight: they fill a vector
    SPConv's k×k + 1×1   4 to 8, 128 px    11.8    5.4      two
                         8 to 16, 64 px     5.3    3.5      four

The kernel is put together from the layer's own parameters in every step, so gradients arrive in them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.ops.fold import ungroup

# The dense form has this many times the multiplications, and was measured up to here.
MOST_GROUPS = 4


def narrow(channels: int, groups: int) -> bool:
    """Whether a k×k convolution of that many input channels and groups is faster as a dense one."""
    return 1 < groups <= MOST_GROUPS and channels // groups < this_cpu().lanes


def is_narrow_conv(module: nn.Conv2d) -> bool:
    """Whether it is a plain `nn.Conv2d` of narrow groups. A depthwise one has a kernel of its own."""
    return (
        type(module)._conv_forward is nn.Conv2d._conv_forward
        and max(module.kernel_size) > 1
        and not module.groups == module.in_channels == module.out_channels
        and narrow(module.in_channels, module.groups)
    )


def is_narrow_hetconv(module: Any) -> bool:
    """Whether it is a HetConv whose group convolution has narrow groups. Without `grouped` it runs as a dense layer."""
    return (
        getattr(type(module), "name", "") == "hetconv"
        and module.grouped is True
        and max(module.kernel_size) > 1
        and narrow(module.in_channels, module.part)
    )


def conv_forward(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`nn.Conv2d._conv_forward` with zero blocks between the groups."""
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0, 0)
    if x.device.type != "cpu" or x.dtype == torch.float64:  # no kernel of ours, and no vectors that are half empty
        return F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, layer.groups)
    return F.conv2d(x, ungroup(weight, layer.groups), bias, layer.stride, padding, layer.dilation)
