"""Depthwise-separable layers of several filters a channel as the dense convolution that they equal, while they train.

The layer's own first convolution makes `multiplier` maps of each channel, in groups that fill no vector: PyTorch
computes them slowly, and keeps them all for the gradient. The dense kernel is put together from the layer's own
parameters in every step, in float32, so gradients arrive in them. The layer's input and that kernel are kept.
"""

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.kernels.dispatched import takes_layer, type_of, wrong_on_tiles
from leanconv.kernels.norm_act import watched
from leanconv.kernels.recomputed import is_ours
from leanconv.ops.forms import out_size
from leanconv.ops.padded import sides

# Weights of the dense kernel over 9 times the multiplier, up to which the dense convolution takes less time than the
# layer itself: forward and backward of 3×3, channels_last, one core of a Xeon with AMX, float32 and bfloat16. Two
# filters a channel: 16 to 16 channels at 32 px and batch 128 .39x and .27x, 64 to 64 at 8 px .77x and .33x, 128 to 128
# at 16 px and batch 16 1.47x and .48x, 256 to 256 at 8 px and batch 32 2.11x and 1.08x, 512 to 512 at 14 px 4.6x and
# 3.6x. Four: 64 to 64 .57x and .30x, 128 to 128 .98x and .50x, 256 to 256 1.51x and 1.26x. Float32 without AVX-512, two
# filters: 16 to 16 .44x, 64 to 64 .82x, 128 to 128 1.60x.
_MOST_WEIGHTS = 4096
# In bfloat16, where there are matrix tiles (AMX). 5×5: 90 to 90 channels, two filters, .47x; 128 to 128, four, .88x.
# 7×7: 64 to 64, two, .26x; 128 to 128, four, 1.85x. In float32 all four take longer.
_MOST_ON_TILES = 12288


def replacement(layer: nn.Module) -> tuple[str, Any] | None:
    """`forward` of such a layer, by name; None for others, and where nothing is gained."""
    if getattr(type(layer), "name", "") != "depthwise_separable" or not is_ours(layer) or not _is_plain(layer):
        return None
    most = _MOST_ON_TILES if this_cpu().amx else _MOST_WEIGHTS
    if "forward" in layer.__dict__ or not _is_narrow(layer, most):
        return None
    return "forward", functools.partial(_forward, layer, this_cpu().amx)


def _is_plain(layer: Any) -> bool:
    """Whether its convolutions are its own, of several filters a channel, with zeros around the map."""
    spatial, flat = layer.spatial, layer.pointwise
    return (
        type(spatial) is type(flat) is nn.Conv2d
        and not layer.block
        and layer.multiplier > 1
        and spatial.groups == spatial.in_channels == layer.in_channels
        and spatial.out_channels == flat.in_channels == layer.multiplier * layer.in_channels
        and flat.out_channels == layer.out_channels
        and spatial.kernel_size == layer.kernel_size
        and spatial.padding_mode == "zeros"
        and spatial.bias is None
        and flat.kernel_size == flat.stride == (1, 1)
        and flat.groups == 1
        and not isinstance(flat.padding, str)
        and not any(flat.padding)
    )


def _is_narrow(layer: Any, most: int) -> bool:
    weights = layer.in_channels * layer.out_channels * math.prod(layer.kernel_size)
    return bool(weights <= 9 * most * layer.multiplier)


def _forward(layer: Any, on_tiles: bool, x: Tensor) -> Tensor:
    if not _fits(layer, on_tiles, x) or watched(layer.spatial, layer.pointwise) or _has_any_global_hook():
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    spatial, bias, kind = layer.spatial, layer.pointwise.bias, type_of(x)
    weight = _dense(spatial.weight.float(), layer.pointwise.weight.float(), layer.multiplier).to(kind)
    bias = None if bias is None else bias.to(kind)
    return F.conv2d(x.to(kind), weight, bias, spatial.stride, spatial.padding, spatial.dilation)


def _dense(filters: Tensor, matrix: Tensor, each: int) -> Tensor:
    """`C·B 1 R S`, `O C·B 1 1 -> O C R S`. Products and sums by number: autocast would round those of matrices."""
    return torch.stack([matrix[:, b::each] * filters[b::each, 0] for b in range(each)]).sum(0)


def _fits(layer: Any, on_tiles: bool, x: Tensor) -> bool:
    """Whether the layer is as it was, gains with this map, and PyTorch's convolution of it is right."""
    if not _is_plain(layer):
        return False
    weights = layer.spatial.weight, layer.pointwise.weight, layer.pointwise.bias
    if not takes_layer(x, layer.in_channels, *weights):
        return False
    if not _is_narrow(layer, _MOST_ON_TILES if on_tiles and type_of(x) == torch.bfloat16 else _MOST_WEIGHTS):
        return False
    spatial = layer.spatial
    left, right, top, bottom = sides(spatial.kernel_size, spatial.padding, spatial.dilation)
    around = top, bottom, left, right
    columns = out_size(x.shape[2], x.shape[3], spatial.kernel_size, spatial.stride, spatial.dilation, around)[1]
    return not wrong_on_tiles(columns, spatial.stride)
