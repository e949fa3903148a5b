"""HetConv by one operator, while it trains on the CPU's kernels.

The layer deals its channels out, convolves them in groups, deals the result back and adds a 1×1. The kernel
moves no channel, and keeps the layer's input alone for the gradient. Where it does not take the map or the geometry,
the layer computes as before. In bfloat16 on matrix tiles (AMX) PyTorch's dense convolution runs in its place, with
zeros between the groups; the input, in bfloat16, and that kernel are kept.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.cpu.runtime.hetconv import PARTS
from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.kernels.dispatched import takes_layer, through_dispatcher, type_of, wrong_on_tiles
from leanconv.kernels.recomputed import is_ours
from leanconv.ops import hetconv as ops

# Input times output channels up to which the kernel is not slower than the layer's own convolutions: forward and
# backward of 3×3, channels_last, one core of an EPYC (AVX-512), float32 and bfloat16. 8 to 8 channels at 128 px and
# batch 4 .42x and .43x, 64 to 64 at 16 px and batch 16 .78x and .63x, 128 to 128 at 7 px and batch 8 .97x and .93x, 128
# to 256 at 14 px and batch 4 .93x and 1.08x, 256 to 256 at 7 px and batch 8 1.1x: there the weights fill the L2 cache.
# Blocks, which the layer need not deal out itself: 64 to 64 at 8 px and batch 128 .90x and 1.08x, 64 to 128 at 8 px and
# batch 16 1.00x and .97x, 128 to 64 at 16 px .86x and 1.01x, 128 to 128 at 8 px 1.08x and 1.09x.
_MOST_WEIGHTS = {"shifted": 128 * 128, "blocked": 64 * 128}
# Dense multiply-adds from which it is faster to put the dense kernel together for matrix tiles (AMX), in bfloat16.
# Forward and backward of 3×3, one core of a Xeon, that and the kernel in vectors: 8 to 8 channels at 128 px and batch
# 16 5.8 ms and 9.0, 64 to 64 at 16 px 1.6 and 1.9, at 8 px and batch 128 3.0 and 3.5, 128 to 128 at 8 px and batch 16
# 2.3 and 2.7 (150 M each); 16 to 16 at 7 px .46 and .15 (.1 M). The layer's own convolutions take 37, 2.4, 4.3, 1.9
# and .55, and keep more maps.
_ON_TILES = 1 << 24
_METHOD = "_convolved"  # what the layer's forward calls


def replacement(layer: nn.Module) -> tuple[str, Any] | None:
    """A method of a layer that runs the operator, by name; None for other layers."""
    if getattr(type(layer), "name", "") != "hetconv" or not is_ours(layer) or not _is_plain(layer):
        return None
    return None if _METHOD in layer.__dict__ else (_METHOD, functools.partial(_convolved, layer, this_cpu().amx))


def _is_plain(layer: Any) -> bool:
    """Whether the kernel has the layer's sizes, and gains by them."""
    return (
        layer.part in PARTS
        and layer.in_channels % layer.part == layer.out_channels % layer.part == 0
        and layer.in_channels * layer.out_channels <= _MOST_WEIGHTS[layer.arrangement]
        and layer.padding_mode == "zeros"
    )


def _convolved(layer: Any, on_tiles: bool, x: Tensor) -> Tensor:
    if not _is_plain(layer) or not _fits(layer, x):
        return type(layer)._convolved(layer, x)  # type: ignore[no-any-return]
    weights, geometry = (layer.spatial, layer.pointwise, layer.bias), (layer.stride, layer.padding, layer.dilation)
    inputs = *weights, *geometry, layer.arrangement == "blocked"
    if on_tiles and type_of(x) == torch.bfloat16 and _gains_on_tiles(layer, x):
        return ops.composed(x.bfloat16(), *inputs)
    if through_dispatcher(x):
        return ops.hetconv2d(x, *inputs)  # type: ignore[no-any-return]
    return _HetConv.apply(x.to(type_of(x)), *inputs)  # type: ignore[no-any-return]


def _gains_on_tiles(layer: Any, x: Tensor) -> bool:
    """Whether the dense convolution that the layer equals is right on matrix tiles, and faster than the kernel."""
    n, _, p, q = ops.output_size(x.shape, layer.spatial.shape, layer.stride, layer.padding, layer.dilation)
    if wrong_on_tiles(q, layer.stride):
        return False
    return n * p * q * layer.in_channels * layer.out_channels * math.prod(layer.kernel_size) >= _ON_TILES


def _fits(layer: Any, x: Tensor) -> bool:
    if not takes_layer(x, layer.in_channels, layer.spatial, layer.pointwise, layer.bias):
        return False
    return min(ops.output_size(x.shape, layer.spatial.shape, layer.stride, layer.padding, layer.dilation)) > 0


class _HetConv(torch.autograd.Function):
    """`ops.hetconv2d`; a gradient that is itself to have one goes through other operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        ops.save(ctx, inputs, None)
        return cpu.hetconv(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ops.backward(ctx, grad, ops.hetconv2d_gradient if through_dispatcher(grad) else cpu.hetconv_gradient)
