"""SPLConv as a whole by its kernels, while it trains on the CPU: for the gradient it keeps its input alone.

Both branches (`separable_branches`) and what follows them (`normalized_gated_sum`) run in one function of autograd. The
blend is written over a branch. For the gradient the branches are computed once more, and their gradients are written
over them. Under a compiler, and where an operator does not take the map, the layer computes as without this.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.kernels import normalized_gates, separable_layers
from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.dispatched import through_dispatcher

_BRANCHES = 7  # tensors that the branches take: x, two stencils, both 1×1s with a bias each


def replacement(layer: nn.Module, parts: normalized_gates.Gated, otherwise: Any) -> tuple[str, Any] | None:
    """`forward` of a SPLConv whose branches are one operator, by name; None where somebody has put another there.

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
    y, statistics = _SPLConv.apply(*given, *normalized_gates.parameters(parts)[:2], normalized_gates.settings(parts))
    normalized_gates.track_both(parts, statistics, y.numel() // y.shape[1])
    return y  # type: ignore[no-any-return]


def _inputs(layer: Any, parts: normalized_gates.Gated, x: Tensor) -> tuple[Any, ...] | None:
    """What the branches' operator takes; None where the layer is to be computed otherwise."""
    if not torch.is_grad_enabled() or through_dispatcher(x) or normalized_gates.watched(parts):
        return None
    if x.dim() != 4 or x.shape[0] * x.shape[2] * x.shape[3] < 2 or not normalized_gates.takes(parts, x):
        return None
    return separable_layers.operator_inputs(layer, x)


class _SPLConv(torch.autograd.Function):
    """The layer, and the statistics of its norm; its gradient has none."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        *branches, weight, bias, ctx.settings = given
        ctx.geometry = branches[_BRANCHES]
        a, b = cpu.branches(*branches)
        y, gate, statistics = cpu.normalized_blend_(a, b, weight, bias, None, None, *ctx.settings)
        ctx.save_for_backward(*branches[:_BRANCHES], weight, bias, gate, statistics)
        ctx.mark_non_differentiable(statistics)
        return y, statistics

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        saved, geometry, wanted = ctx.saved_tensors, ctx.geometry, ctx.needs_input_grad
        branches, (weight, bias, gate, statistics) = saved[:_BRANCHES], saved[_BRANCHES:]
        a, b = cpu.branches(*branches, geometry)
        own = weight, bias, None, None, gate, statistics, *ctx.settings
        to_a, to_b, of_norm = cpu.normalized_blend_gradient_(grad, a, b, *own)
        del a, b, grad
        x, first, second, matrix, _, plain, _ = branches
        found = cpu.branches_gradient(to_a, to_b, x, first, second, matrix, plain, geometry, wanted[0])
        of_branches = [
            each.to(given.dtype) if need else None
            for each, given, need in zip(found, branches, wanted[:_BRANCHES], strict=True)
        ]
        return *of_branches, None, of_norm[0].to(weight.dtype), of_norm[1].to(bias.dtype), None
