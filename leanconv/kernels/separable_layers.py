"""Depthwise-separable layers and both branches of SPLConv by one operator, while they train on the CPU's kernels.

A layer's own convolutions then do not run: what lies between them is neither written nor kept for the gradient. Where a
hook or a parametrisation sits on one of them, or the kernel does not take the map, the layer computes as before.
"""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.dispatched import takes_layer, through_dispatcher, type_of
from leanconv.kernels.norm_act import watched
from leanconv.kernels.recomputed import is_ours
from leanconv.ops import separable_branches as ops
from leanconv.ops.padded import sides

# Weights of a 1×1 up to which one kernel is not slower than the layer's own convolutions: forward and backward, one
# core of an EPYC (AVX-512). Depthwise-separable, float32: 32 to 32 channels at 32 px and batch 16 .90x, 128 to 64 at
# 16 px .84x, 128 to 128 at 8 px 1.27x. In bfloat16, which oneDNN multiplies with instructions of its own: 32 to 32
# .90x, 64 to 64 at 16 px 1.21x. SPLConv, whose 1×1s have half of the channels: 64 to 64 .92x and .82x, 128 to 64 .88x
# and 1.09x.
_MOST_WEIGHTS = {torch.float32: 8192, torch.bfloat16: 2048}


class Branches(NamedTuple):
    """The convolutions of a layer: depthwise ones, the 1×1 behind them, and perhaps a 1×1 of the other channels.

    idle: what does nothing in its branches.
    """

    stencils: list[Any]
    matrix: Any
    plain: Any
    idle: list[Any]

    @property
    def flat(self) -> list[Any]:
        """The 1×1s."""
        return [self.matrix] if self.plain is None else [self.matrix, self.plain]

    @property
    def convs(self) -> list[Any]:
        return [*self.stencils, *self.flat]


def replacement(layer: nn.Module) -> tuple[str, Any] | None:
    """A method of a layer that runs the operator, by name; None for other layers, and where nothing is gained."""
    found = _branches(layer)
    if found is None or not is_ours(layer):
        return None
    if not all(map(_keeps_size, found.convs)) or not _is_narrow(found, torch.float32):
        return None
    name, method = ("branches", _both) if found.plain is not None else ("forward", _one)
    return None if name in layer.__dict__ else (name, functools.partial(method, layer))


def _branches(layer: Any) -> Branches | None:
    kind = getattr(type(layer), "name", "")
    if kind == "depthwise_separable" and not getattr(layer, "block", True) and layer.multiplier == 1:
        return Branches([layer.spatial], layer.pointwise, None, [])
    if kind == "splconv" and isinstance(layer.pool, nn.Identity):
        parts = layer.stencil1, layer.stencil2, layer.pool
        idle = [each for each in parts if isinstance(each, nn.Identity)]
        return Branches([each for each in parts[:2] if each not in idle], layer.pointwise, layer.plain, idle)
    return None


def is_cheap(layer: nn.Module) -> bool:
    """Whether it is a SPLConv whose branches take little time against the maps that they make, at any stride."""
    if getattr(type(layer), "name", "") != "splconv":
        return False
    flat: list[Any] = [layer.pointwise, layer.plain]
    return all(_is_plain(each) and each.weight.numel() <= _MOST_WEIGHTS[torch.float32] for each in flat)


def _is_narrow(found: Branches, dtype: torch.dtype) -> bool:
    """Whether the 1×1s are narrow enough for maps of that type."""
    return all(each.weight.numel() <= _MOST_WEIGHTS[dtype] for each in found.flat)


def _keeps_size(conv: Any) -> bool:
    """Whether it is a convolution with padding of zeros that keeps the size of the map."""
    if not _is_plain(conv) or conv.stride != (1, 1) or conv.padding_mode != "zeros":
        return False
    spans = [d * (size - 1) for d, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    left, right, top, bottom = _sides(conv)
    return [top + bottom, left + right] == spans and min(left, right, top, bottom) >= 0


def _is_plain(conv: Any) -> bool:
    """Whether it is PyTorch's convolution or SPLConv's own, and no subclass or parametrisation of it."""
    kind = type(conv)
    return kind is nn.Conv2d or (kind.__base__ is nn.Conv2d and kind.__module__ == "leanconv.nn.splconv")


def _sides(conv: Any) -> list[int]:
    """The padding at the left, right, top and bottom."""
    uneven: list[int] | None = getattr(conv, "uneven", None)
    if uneven is not None:
        return uneven
    return sides(conv.kernel_size, conv.padding, conv.dilation)


def _one(layer: Any, x: Tensor) -> Tensor:
    """The forward pass of a depthwise-separable layer."""
    found = _run(layer, x)
    return type(layer).forward(layer, x) if found is None else found[0]  # type: ignore[no-any-return]


def _both(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both branches of SPLConv."""
    found = _run(layer, x)
    return type(layer).branches(layer, x) if found is None else found  # type: ignore[no-any-return]


def _run(layer: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both results of the operator; None where it does not take the map, or somebody looks at a convolution."""
    if (inputs := operator_inputs(layer, x)) is None:
        return None
    run = ops.separable_branches if through_dispatcher(x) else _SeparableBranches.apply
    return run(*inputs)  # type: ignore[no-any-return]


def operator_inputs(layer: Any, x: Tensor) -> tuple[Any, ...] | None:
    """What the operator takes for a layer, its map in autocast's type; None as for `_run`."""
    if (found := _branches(layer)) is None:
        return None
    if (
        not all(map(_keeps_size, found.convs))
        or watched(*found.convs, *found.idle)
        or _has_any_global_hook()
        or not _are_usual(found)  # another convolution was put in one's place
    ):
        return None
    weights = (each for conv in found.convs for each in (conv.weight, conv.bias))
    if not takes_layer(x, _inputs(found), *weights) or not _is_narrow(found, type_of(x)):
        return None
    first, second = [*(conv.weight for conv in found.stencils), None, None][:2]
    plain = (None, None) if found.plain is None else (found.plain.weight[:, :, 0, 0], found.plain.bias)
    geometry = [size for conv in found.stencils for size in (_sides(conv)[2], _sides(conv)[0], *conv.dilation)]
    given = x if through_dispatcher(x) else x.to(type_of(x))  # the operator casts by its own rule
    return given, first, second, found.matrix.weight[:, :, 0, 0], found.matrix.bias, *plain, geometry


def _are_usual(found: Branches) -> bool:
    """Whether the stencils are depthwise and add no bias, and the others are 1×1 of one group."""
    depthwise = all(
        each.bias is None and each.groups == each.in_channels == each.out_channels for each in found.stencils
    )
    return depthwise and all(each.groups == 1 and each.kernel_size == (1, 1) for each in found.flat)


def _inputs(found: Branches) -> int:
    """The channels that the layer takes."""
    return sum(int(each.weight.shape[1]) for each in found.flat)


def run(*inputs: Any) -> tuple[Tensor, Tensor]:
    """Both results of the operator, without a gradient."""
    return cpu.branches(*inputs)


def gradients(to_a: Tensor, to_b: Tensor, inputs: tuple[Any, ...], wanted: tuple[bool, ...]) -> tuple[Any, ...]:
    """The gradients of its inputs that want one."""
    return ops.of_inputs(to_a, to_b, inputs, wanted, cpu.branches_gradient)


class _SeparableBranches(torch.autograd.Function):
    """`ops.separable_branches`; a gradient that is itself to have one goes through other operators."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = cpu.branches(*inputs)
        ops.save(ctx, inputs, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor, plain_grad: Any) -> tuple[Any, ...]:
        every = ops.separable_branches_gradient if through_dispatcher(grad) else cpu.branches_gradient
        return ops.backward(ctx, grad, plain_grad, every)
