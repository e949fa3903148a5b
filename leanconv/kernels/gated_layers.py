"""SPConv and SPLConv as a whole by their kernels, while they train on the CPU: they keep their input alone.

Both branches (`spconv_layers`, `separable_layers`) and what follows (`normalized_gated_sum`) run in one function of
autograd. The blend is written over a branch. For the gradient the branches are computed once more, and their gradients
are written over them. Under a compiler, and where an operator does not take the map, the layer computes as without.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.kernels import normalized_gates, separable_layers, spconv_layers
from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.dispatched import through_dispatcher
from leanconv.ops import normalized_gated_sum as ops

# Who computes the branches: what the operator takes, its results, and its gradients.
_ROOMS = {"spconv": spconv_layers, "splconv": separable_layers}
_NORMS, _FOUND = 4, 2  # tensors that follow those of the branches: the norms' numbers; gates and statistics


def replacement(layer: nn.Module, parts: normalized_gates.Gated, otherwise: Any) -> tuple[str, Any] | None:
    """`forward` of a layer whose branches are one operator, by name; None where somebody has put another there.

    otherwise: what computes the layer where the operator does not take it; None: part by part.
    """
    if "forward" in layer.__dict__:
        return None
    return "forward", functools.partial(_forward, layer, parts, otherwise or functools.partial(_plain, layer))


def _plain(layer: Any, x: Tensor) -> Tensor:
    return type(layer).forward(layer, x)  # type: ignore[no-any-return]


def _forward(layer: Any, parts: normalized_gates.Gated, otherwise: Any, x: Tensor) -> Tensor:
    given = _inputs(layer, parts, x)
    if given is None:
        return otherwise(x)  # type: ignore[no-any-return]
    settings = _ROOMS[layer.name], normalized_gates.settings(parts)
    y, statistics = _Gated.apply(*settings, *given, *normalized_gates.parameters(parts))
    normalized_gates.track_both(parts, statistics, y.numel() // y.shape[1])
    return y  # type: ignore[no-any-return]


def _inputs(layer: Any, parts: normalized_gates.Gated, x: Tensor) -> tuple[Any, ...] | None:
    """What the branches' operator takes; None where the layer is to be computed otherwise."""
    if not torch.is_grad_enabled() or through_dispatcher(x) or normalized_gates.watched(parts):
        return None
    if x.dim() != 4 or not normalized_gates.takes(parts, x):
        return None
    return _ROOMS[layer.name].operator_inputs(layer, x)  # type: ignore[no-any-return]


class _Gated(torch.autograd.Function):
    """The layer, and the statistics of its norms; its gradient has none."""

    @staticmethod
    def forward(ctx: Any, room: Any, settings: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *branches, geometry = given[:-_NORMS]
        norms = given[-_NORMS:]
        ctx.room, ctx.settings, ctx.geometry = room, settings, geometry
        a, b = room.run(*branches, geometry)
        y, gate, statistics = cpu.normalized_blend_(a, b, *norms, *settings)
        ctx.save_for_backward(*branches, *norms, gate, statistics)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        count = len(saved) - _NORMS - _FOUND
        branches, own = (*saved[:count], ctx.geometry), saved[count:]
        a, b = ctx.room.run(*branches)
        to_a, to_b, sums = cpu.normalized_blend_gradient_(grad, a, b, *own, *ctx.settings)
        del a, b, grad
        of_branches = ctx.room.gradients(to_a, to_b, branches, wanted[:count])
        return None, None, *of_branches, *ops.of_norms(sums, own[:_NORMS])
