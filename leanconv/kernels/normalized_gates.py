"""SPConv's and SPLConv's norms and ReLU computed inside their gated sum, while they train on the CPU's kernels.

A layer's own norms and activation then pass their maps on, and the gated sum does their work: three maps fewer are
written, and those between are not kept for the gradient. Outside of training the layer computes as before.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.kernels.cpu import training as cpu
from leanconv.kernels.norm_act import track
from leanconv.ops import normalized_gated_sum as ops


class Gated(NamedTuple):
    """What stands before a layer's gated sum: a norm and perhaps a ReLU, and the other branch's norm, if it has one."""

    norm: nn.BatchNorm2d
    other: nn.BatchNorm2d | None
    act: nn.ReLU | None
    layer: Any  # whose they are

    @property
    def parts(self) -> list[nn.Module]:
        return [part for part in self[:3] if part is not None]

    @property
    def replaced(self) -> bool:
        """Whether somebody put another module in the place of one."""
        own = self.layer._modules.values()
        return not all(any(part is each for each in own) for part in self.parts)


def gated(layer: Any) -> Gated | None:
    """The norms and the activation of a SPConv or SPLConv; None for others, folded ones, and where a hook looks on."""
    kind = getattr(type(layer), "name", "")
    if kind == "spconv":
        found = Gated(layer.norm1, layer.norm2 if isinstance(layer.norm2, nn.BatchNorm2d) else None, None, layer)
    elif kind == "splconv":
        found = Gated(layer.norm, None, layer.act, layer)
    else:
        return None
    norms = [norm for norm in found[:2] if norm is not None]
    plain = all(type(norm) is nn.BatchNorm2d and norm.affine for norm in norms)
    plain = plain and (found.act is None or type(found.act) is nn.ReLU)
    own = any("forward" in part.__dict__ for part in found.parts)
    return found if plain and not own and not watched(found) else None


def watched(parts: Gated) -> bool:
    """Whether a hook looks at one of these modules, or it is replaced: all compute what they are for, as before."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return parts.replaced or any(getattr(part, name) for part in parts.parts for name in hooks)


def pass_on(parts: Gated, part: nn.Module, x: Tensor) -> Tensor:
    """The `forward` of a part whose work the gated sum does; the part's own where a hook looks on."""
    return type(part).forward(part, x) if watched(parts) else x


def takes(parts: Gated, a: Tensor) -> bool:
    """Whether the operator computes these norms: in training, numbers in float32, more than one pixel a channel."""
    norms = [norm for norm in parts[:2] if norm is not None]
    return a.numel() > a.shape[1] and all(
        norm.training and p is not None and p.dtype == torch.float32 and p.device == a.device
        for norm in norms
        for p in (norm.weight, norm.bias)
    )


def one_by_one(parts: Gated, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both branches as the layer's own parts make them."""
    a = nn.BatchNorm2d.forward(parts.norm, a)
    if parts.act is not None:
        a = nn.ReLU.forward(parts.act, a)
    return a, b if parts.other is None else nn.BatchNorm2d.forward(parts.other, b)


def together(parts: Gated, a: Tensor, b: Tensor, *, dispatched: bool) -> Tensor:
    """The gated sum of both branches with their norms, whose running statistics move. `dispatched`: by the operator."""
    run = ops.normalized_gated_sum if dispatched else _NormalizedGatedSum.apply
    y, _, statistics = run(a, b, *parameters(parts), *settings(parts))
    track_both(parts, statistics, a.numel() // a.shape[1])
    return y  # type: ignore[no-any-return]


def parameters(parts: Gated) -> list[Tensor | None]:
    """Weight and bias of the norm, and of the other branch's."""
    return [p for norm in parts[:2] for p in ((None, None) if norm is None else (norm.weight, norm.bias))]


def settings(parts: Gated) -> tuple[bool, list[float]]:
    """What the operator takes after the parameters."""
    return parts.act is not None, [parts.norm.eps, parts.norm.eps if parts.other is None else parts.other.eps]


def track_both(parts: Gated, statistics: Tensor, count: int) -> None:
    """Move the running statistics of the norms by those of the operator, `4 C`, of `count` numbers each."""
    for norm, moments in zip(parts[:2], statistics.detach().split(2), strict=True):
        if norm is not None:
            track(norm, moments, count)


class _NormalizedGatedSum(torch.autograd.Function):
    """`ops.normalized_gated_sum`; its gradient has none."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = cpu.normalized_blend(*inputs)
        ops.save(ctx, inputs, output)
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
        return ops.backward(ctx, grad, every=cpu.normalized_blend_gradient)
