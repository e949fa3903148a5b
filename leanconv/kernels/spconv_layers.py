"""SPConv's branches by one operator, while they train on the CPU's kernels.

The layer's group convolution and its 1×1 are one HetConv whose groups are blocks; it reads its channels where they lie,
and keeps the layer's input alone for the gradient. Strided layers, whose 1×1s read an average, and those whose
convolutions somebody watches compute as before.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.cpu.runtime.hetconv import PARTS
from leanconv.kernels.dispatched import recorded, through_dispatcher
from leanconv.kernels.norm_act import watched
from leanconv.kernels.recomputed import is_ours
from leanconv.ops import hetconv_branches as ops

# Input times output channels of the k×k up to which the kernel is not slower than the layer's own convolutions: both
# branches forward and backward, 3×3, channels_last, one core of an EPYC (AVX-512), float32 and bfloat16. 64 to 64
# channels (32 of them k×k) at 8 px and batch 128 1.01x and .93x, at 7 px and batch 8 .91x and .85x, 64 to 128 at 4 px
# and batch 128 1.06x and .99x, 128 to 64 at 16 px and batch 16 .96x and 1.04x, 128 to 128 at 8 px 1.15x and 1.14x.
_MOST_WEIGHTS = 64 * 64
_METHOD = "branches"  # what the layer's forward calls


def replacement(layer: nn.Module) -> tuple[str, Any] | None:
    """A method of a layer that runs the operator, by name; None for other layers, and where nothing is gained."""
    if getattr(type(layer), "name", "") != "spconv" or not is_ours(layer) or not _is_plain(layer):
        return None
    return None if _METHOD in layer.__dict__ else (_METHOD, functools.partial(_branches, layer))


def _is_plain(layer: Any) -> bool:
    """Whether the layer's convolutions are its own, and the kernel has their sizes and gains by them."""
    spatial, flat = layer.spatial, (layer.pointwise, layer.plain)
    if any(type(each) is not nn.Conv2d for each in (spatial, *flat)) or not isinstance(layer.pool, nn.Identity):
        return False
    middle = tuple(d * (size - 1) // 2 for d, size in zip(spatial.dilation, spatial.kernel_size, strict=True))
    return (
        spatial.groups in PARTS
        and spatial.stride == (1, 1)
        and spatial.padding == middle
        and spatial.padding_mode == "zeros"
        and spatial.bias is None
        and layer.pointwise.bias is None
        and spatial.in_channels * spatial.out_channels <= _MOST_WEIGHTS
        and all(each.kernel_size == each.stride == (1, 1) and each.groups == 1 for each in flat)
        and all(each.padding == (0, 0) for each in flat)
    )


def _branches(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    parts = layer.spatial, layer.pointwise, layer.plain, layer.pool
    if not _is_plain(layer) or watched(*parts) or _has_any_global_hook() or not _fits(layer, x, dtype):
        return type(layer).branches(layer, x)  # type: ignore[no-any-return]
    matrix, plain = layer.pointwise.weight[:, :, 0, 0], layer.plain.weight[:, :, 0, 0]
    inputs = layer.spatial.weight, matrix, plain, layer.plain.bias, layer.spatial.dilation
    if through_dispatcher(x):
        return ops.hetconv_branches(x, *inputs)  # type: ignore[no-any-return]
    return _HetConvBranches.apply(x.to(dtype), *inputs)  # type: ignore[no-any-return]


def _fits(layer: Any, x: Tensor, dtype: torch.dtype) -> bool:
    weights = layer.spatial.weight, layer.pointwise.weight, layer.plain.weight, layer.plain.bias
    return (
        x.dim() == 4
        and x.shape[1] == sum(layer.split)
        and x.device.type == "cpu"
        and x.dtype in cpu.TYPES
        and dtype in cpu.TYPES
        and x.numel() > 0
        and all(w is None or (w.device == x.device and w.dtype in (x.dtype, torch.float32)) for w in weights)
        and not recorded()
    )


class _HetConvBranches(torch.autograd.Function):
    """`ops.hetconv_branches`; a gradient that is itself to have one goes through other operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ops.save(ctx, inputs, None)
        return cpu.het_branches(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, plain_grad: Tensor) -> tuple[Any, ...]:
        every = ops.hetconv_branches_gradient if through_dispatcher(grad) else cpu.het_branches_gradient
        return ops.backward(ctx, grad, plain_grad, every)
