"""SPConv's branches by one operator, while they train on the CPU's kernels.

The layer's group convolution and its 1×1 are one HetConv whose groups are blocks; it reads its channels where they lie,
and keeps the layer's input alone for the gradient (`gated_layers` does so for the whole layer). The 1×1s of a strided
layer read an average, which is made once more. Layers whose convolutions somebody watches compute as before.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.cpu.runtime.hetconv import PARTS
from leanconv.kernels.dispatched import takes_layer, through_dispatcher, type_of
from leanconv.kernels.norm_act import watched
from leanconv.kernels.recomputed import is_ours
from leanconv.ops import hetconv_branches as ops

# Input times output channels of the k×k up to which the layer runs by the kernel. A training step of the whole layer,
# which keeps its input alone, against its own convolutions, which keep both branches: 3×3, channels_last, one core of
# an EPYC (AVX-512), float32 and bfloat16. With stride 2, 16 to 32 channels (8 of them k×k) at 32 px and batch 128 .87x
# and .86x, 64 to 128 at 64 px and batch 8 .96x and 1.26x, at 8 px and batch 128 1.14x and 1.09x. 128 to 128 at 32 px
# and batch 8 .92x and 1.20x, at 8 px and batch 16 1.22x and 1.24x, at 4 px and batch 128 1.40x and 1.23x; PyTorch's
# convolutions computed once more take 1.2x to 1.4x there. 128 to 256 with stride 2 at 32 px 1.14x and 1.42x. With
# 64 · 128 a quarter-width VGG-16 takes 1.10 times as long as if it kept all, for .99 of the dense memory; with 64 · 64
# it takes 1.035 times as long, for 1.06.
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
    if any(type(each) is not nn.Conv2d for each in (spatial, *flat)) or not _averages(layer.pool, spatial.stride):
        return False
    middle = tuple(d * (size - 1) // 2 for d, size in zip(spatial.dilation, spatial.kernel_size, strict=True))
    return (
        spatial.groups in PARTS
        and spatial.padding == middle
        and spatial.padding_mode == "zeros"
        and spatial.bias is None
        and layer.pointwise.bias is None
        and spatial.in_channels * spatial.out_channels <= _MOST_WEIGHTS
        and all(each.kernel_size == each.stride == (1, 1) and each.groups == 1 for each in flat)
        and all(each.padding == (0, 0) for each in flat)
    )


def _averages(pool: nn.Module, stride: tuple[int, ...]) -> bool:
    """Whether it makes the averages that the operator's 1×1s read."""
    if stride == (1, 1):
        return type(pool) is nn.Identity
    sizes = {"kernel_size": stride, "stride": stride, "padding": 0, "ceil_mode": True, "divisor_override": None}
    return type(pool) is nn.AvgPool2d and all(getattr(pool, name) == value for name, value in sizes.items())


def _branches(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    if (inputs := operator_inputs(layer, x)) is None:
        return type(layer).branches(layer, x)  # type: ignore[no-any-return]
    both = ops.hetconv_branches if through_dispatcher(x) else _HetConvBranches.apply
    return both(*inputs)  # type: ignore[no-any-return]


def operator_inputs(layer: Any, x: Tensor) -> tuple[Any, ...] | None:
    """What the operator takes for a layer, its map in autocast's type.

    None where it does not take the map, or somebody looks at a convolution.
    """
    parts = layer.spatial, layer.pointwise, layer.plain, layer.pool
    if not _is_plain(layer) or watched(*parts) or _has_any_global_hook():
        return None
    weights = layer.spatial.weight, layer.pointwise.weight, layer.plain.weight, layer.plain.bias
    if not takes_layer(x, sum(layer.split), *weights):
        return None
    spatial, matrix, plain, bias = weights
    given = x if through_dispatcher(x) else x.to(type_of(x))  # the operator casts by its own rule
    geometry = [*layer.spatial.stride, *layer.spatial.dilation]
    return given, spatial, matrix[:, :, 0, 0], plain[:, :, 0, 0], bias, geometry


def run(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Both results of the operator, without a gradient."""
    return cpu.het_branches(*inputs)


def gradients(to_a: Tensor, to_b: Tensor, inputs: tuple[Any, ...], wanted: tuple[bool, ...]) -> tuple[Any, ...]:
    """The gradients of its inputs that want one."""
    return ops.of_inputs(to_a, to_b, inputs, wanted, cpu.het_branches_gradient)


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
