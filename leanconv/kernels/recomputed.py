"""Layers of cheap stages that keep their input alone for the gradient, and compute the maps between once more.

SPConv and SPLConv keep both branches and the blend, and SPConv what lies before its 1×1; those that `gated_layers`
takes do not. A depthwise-separable layer that `separable_layers` leaves (strides, wide 1×1s) keeps
its stencil's result, a HetConv that `hetconv_layers` leaves its input a second time with its channels in another order.
The stencils and 1×1s are computed again, HetConv's convolution is not.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from leanconv.kernels import normalized_gates
from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.dispatched import recorded, through_dispatcher
from leanconv.kernels.norm_act import watched
from leanconv.ops import normalized_gated_sum as ops


def replacement(layer: nn.Module, parts: normalized_gates.Gated | None) -> tuple[str, Any] | None:
    """A method of a layer that keeps less, by name, for a layer with these norms before its gate, or without one.

    None where there is nothing to gain.
    """
    kind = getattr(type(layer), "name", "")
    if not is_ours(layer):
        return None
    if parts is not None:
        name, method = "forward", functools.partial(_gated, layer, parts)
    elif kind == "depthwise_separable" and not getattr(layer, "block", True):
        name, method = "forward", functools.partial(_again, layer, "forward")
    elif kind == "hetconv" and getattr(layer, "grouped", False):
        name, method = "_dealt", functools.partial(_again, layer, "_dealt")
    else:
        return None
    return None if name in layer.__dict__ else (name, method)


def is_ours(layer: Any) -> bool:
    """Whether no subclass of somebody else computes the layer: it may draw numbers, or do more than we know."""
    names = ("forward", "branches", "_convolved", "_dealt", "_conv", "_gated_sum")
    methods = (getattr(type(layer), name, None) for name in names)
    return all(getattr(method, "__module__", "leanconv").startswith("leanconv.") for method in methods if method)


def _keeps_nothing(part: nn.Module) -> bool:
    """Whether a part of a layer computes the same in each call, and changes nothing of itself."""
    return type(part).__module__.startswith(("leanconv.", "torch.nn.modules.conv", "torch.nn.modules.pooling")) or (
        type(part) is nn.Identity
    )


def _plain(layer: nn.Module, x: Tensor) -> bool:
    """Whether the layer runs as it is: without a gradient, watched by somebody, or of a type that kernels lack."""
    left_out = _LEFT_OUT if hasattr(type(layer), "branches") else ()
    inner = [each for each in layer.modules() if each is not layer and not isinstance(each, left_out)]
    return (
        not torch.is_grad_enabled()
        or not (x.requires_grad or any(p.requires_grad for p in layer.parameters()))
        or through_dispatcher(x)
        or recorded()
        or x.device.type != "cpu"
        or x.dtype not in cpu.TYPES
        or watched(*inner)
        or not all(map(_keeps_nothing, inner))
    )


_CHANGED = "has been modified by an inplace operation"
# Their `forward` is ours already; `normalized_gates.watched` looks for hooks.
_LEFT_OUT = (nn.BatchNorm2d, nn.ReLU)


def _again(layer: nn.Module, name: str, *inputs: Tensor) -> Tensor:
    """A method of the layer, what it keeps computed again."""
    method = getattr(type(layer), name)
    if _plain(layer, inputs[0]):
        return method(layer, *inputs)  # type: ignore[no-any-return]
    before = [(each, each._version) for each in (*inputs, *layer.parameters())]

    def run(*inputs: Tensor) -> Tensor:
        if any(each._version != version for each, version in before):
            raise RuntimeError(f"a tensor that {name} of {type(layer).__name__} needs for the gradient {_CHANGED}")
        return method(layer, *inputs)  # type: ignore[no-any-return]

    y: Tensor = checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")
    return y


def _gated(layer: Any, parts: normalized_gates.Gated, x: Tensor) -> Tensor:
    fits = x.dim() == 4 and x.shape[0] > 1 and x.shape[1] == layer.in_channels and normalized_gates.takes(parts, x)
    if _plain(layer, x) or not fits or normalized_gates.watched(parts):
        return type(layer).forward(layer, x)  # type: ignore[no-any-return]
    y, statistics = _Branches.apply(layer, parts, x, *normalized_gates.parameters(parts), *_weights(layer, parts))
    normalized_gates.track_both(parts, statistics, y.numel() // y.shape[1])
    return y  # type: ignore[no-any-return]


def _weights(layer: nn.Module, parts: normalized_gates.Gated) -> list[Tensor]:
    """Parameters of the branches."""
    norms = {id(p) for p in normalized_gates.parameters(parts)}
    return [p for p in layer.parameters() if id(p) not in norms]


class _Branches(torch.autograd.Function):
    """Both branches of SPConv or SPLConv, and `ops.normalized_gated_sum` of them; its gradient has none."""

    @staticmethod
    def forward(
        ctx: Any, layer: Any, parts: normalized_gates.Gated, x: Tensor, *rest: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.layer, ctx.parts, ctx.settings = layer, parts, normalized_gates.settings(parts)
        ctx.autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        with _autocast(ctx):
            a, b = layer.branches(x)
        y, gate, statistics = cpu.normalized_blend(a, b, *rest[:4], *ctx.settings)
        ctx.save_for_backward(x, *rest, gate, statistics)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        x, *rest, gate, statistics = ctx.saved_tensors
        norms, weights, wanted = rest[:4], _weights(ctx.layer, ctx.parts), ctx.needs_input_grad
        x = x.detach().requires_grad_(wanted[2])
        with torch.enable_grad(), _autocast(ctx):
            maps = list(ctx.layer.branches(x))
        edges = [torch.autograd.graph.get_gradient_edge(each) if each.requires_grad else None for each in maps]
        maps = [each.detach() for each in maps]
        own: Any = (*maps, *norms, gate, statistics, *ctx.settings)
        *found, sums = cpu.normalized_blend_gradient_(grad, *own)
        del maps, own, grad
        leaves = [each for each in (x, *weights) if each.requires_grad]
        ends = [(edge, each) for edge, each in zip(edges, found, strict=True) if edge is not None]
        roots, slopes = [edge for edge, _ in ends], [each for _, each in ends]
        gradients = iter(torch.autograd.grad(roots, leaves, slopes, allow_unused=True) if leaves else ())
        to_x, *to_weights = list(_in_order([x, *weights], gradients))
        return None, None, to_x, *ops.of_norms(sums, norms), *to_weights


def _in_order(tensors: list[Tensor], gradients: Iterator[Tensor | None]) -> Iterator[Tensor | None]:
    """The gradients of those that want one; None for the others."""
    return (next(gradients) if each.requires_grad else None for each in tensors)


def _autocast(ctx: Any) -> AbstractContextManager[Any]:
    """As it was in the forward pass. A weight that is cast without a gradient must not be kept for later."""
    enabled, dtype = ctx.autocast
    return torch.autocast("cpu", dtype, enabled=enabled, cache_enabled=False)
