"""SPConv, "split to be slim": a k×k treatment for the representative channels, a 1×1 for the rest, blended by a gate.

    a = BN(conv_kxk(x[:, :c]; g groups) + conv_1x1(x[:, :c]))        c = floor(alpha · C)
    b = BN(conv_1x1(x[:, c:]))
    y = gated_sum(a, b)                                                softmax over the pair of their averages

Fresh weights learn slowly through the gate: `nn/quiet_gates.py` says why, and starts them well.
MACs N·P·Q·O·C·(alpha·R·S/g + 1). With stride 2 the 1×1 branches read a 2×2 average (ceil mode).
Source: Zhang et al. 2020, arXiv:2006.12085; the authors' `resnet_sp.py` (output split unused, two groups always).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import (
    Operator,
    batch_or_sample,
    deployed,
    kaiming_fan_out_,
    needs_odd_centred,
    needs_stride_1_or_2,
)
from leanconv.nn.hetconv import HetConv2d
from leanconv.nn.starts import exact_weight, linear_norm_, mean_squares, pooled_taps
from leanconv.ops.fold import bn_scale_shift, fold_bn_, scale_conv_
from leanconv.ops.gated_sum import gated_sum
from leanconv.ops.least_squares import nearest_rows
from leanconv.registry import register
from leanconv.spec import ConvSpec


def average_to_stride(stride: tuple[int, int]) -> nn.Module:
    """What stands before a 1×1 beside a strided k×k: the stride×stride average, ceil(H / stride) wide like the k×k."""
    return nn.Identity() if stride == (1, 1) else nn.AvgPool2d(stride, ceil_mode=True)


def split_channels(channels: int, alpha: float) -> int:
    """floor(alpha · C): how many channels the k×k branch gets. 1e-9 mends products such as 0.29 · 100 = 28.999…"""
    return int(alpha * channels + 1e-9)


def why_not_split(channels: int, alpha: float) -> str | None:
    """The reason why `alpha` leaves one of the two branches without a channel, or None."""
    if not 0 < alpha < 1:
        return f"alpha={alpha} must lie between 0 and 1"
    if not 1 <= split_channels(channels, alpha) <= channels - 1:
        return f"alpha={alpha} leaves a branch of in_channels={channels} empty; both branches need a channel"
    return None


@register("spconv")
class SPConv2d(Operator):
    """SPConv's 3×3 layer. Odd kernels, stride 1 or 2, padding d·(k - 1)/2; `bias` is the plain 1×1's.

    Args: `nn.Conv2d`'s; and
        alpha: share of the input channels that gets the k×k treatment.
        rep_groups: groups of that k×k convolution; divides floor(alpha·C) and `out_channels`.
        inner_norms: 2 (the authors' code) or 1 (BatchNorm on the representative branch only).
    """

    _gated_sum = staticmethod(gated_sum)  # `kernels.training` puts another one into a module
    paper = "Zhang et al. 2020, arXiv:2006.12085"
    accepts = frozenset({"stride", "dilation", "padding_mode"})

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        alpha: float = 0.5,
        rep_groups: int = 2,
        inner_norms: int = 2,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        spec = self._check(*sizes, alpha=alpha, rep_groups=rep_groups, inner_norms=inner_norms)
        self.alpha, self.rep_groups, self.inner_norms = alpha, rep_groups, inner_norms
        c, o, factory = split_channels(spec.c, alpha), spec.o, {"device": device, "dtype": dtype}
        self.split = (c, spec.c - c)
        self.spatial = nn.Conv2d(
            c, o, spec.kernel, spec.stride, spec.padding, spec.dilation, rep_groups, False, spec.padding_mode, **factory
        )
        self.pointwise = nn.Conv2d(c, o, 1, bias=False, **factory)
        self.plain = nn.Conv2d(spec.c - c, o, 1, bias=bias, **factory)
        self.norm1 = nn.BatchNorm2d(o, **factory)
        self.norm2 = nn.BatchNorm2d(o, **factory) if inner_norms == 2 else nn.Identity()
        self.pool = average_to_stride(spec.stride)
        kaiming_fan_out_(self.spatial, self.pointwise, self.plain)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        a, b = self.branches(x)
        return self._gated_sum(self.norm1(a), self.norm2(b))

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:  # N C H W -> N O P Q, N O P Q
        """What the norms read."""
        representative, rest = x.split(self.split, 1)  # N C H W -> N c H W, N C-c H W
        large = self.spatial(representative) + self.pointwise(self.pool(representative))
        return large, self.plain(self.pool(rest))

    def fold(self) -> nn.Module:
        """Both BatchNorms go into their convolutions; at stride 1 the k×k and its 1×1 become one blocked HetConv."""
        if isinstance(self.norm1, nn.Identity):  # folded before
            return self
        folded = deployed(self)
        scale, shift = bn_scale_shift(folded.norm1)
        scale_conv_(folded.spatial, scale, shift)
        scale_conv_(folded.pointwise, scale, torch.zeros_like(shift))
        folded.pointwise.bias = None
        folded.norm1 = nn.Identity()
        if isinstance(folded.norm2, nn.BatchNorm2d):
            fold_bn_(folded.plain, folded.norm2)
            folded.norm2 = nn.Identity()
        return SplitAndBlend(folded) if self.stride == (1, 1) else folded

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The nearest linear layer, with both gates at one half.

        Optimal, with a gram and without. Each branch is twice its share of the kernel, and both have the bias, so that
        the gates rest at one half. What they do when the branches' averages differ is no part of the sum. The norms
        start as the identity.
        """
        target = exact_weight(conv)
        pool = pooled_taps(self.kernel_size, self.stride, self.dilation).to(target)
        rest, energy = target * ~self._owned(conv.weight)[..., None, None], 1 / math.prod(self.stride)
        start = torch.cat([(target - rest).flatten(1), rest.flatten(2) @ pool / energy], 1)  # O (C R·S + C)
        found = start if gram is None else self._weighted(target, gram[0], pool, energy, start)
        taps = 2 * found[:, : target[0].numel()].view_as(target)
        points = 2 * found[:, target[0].numel() :]
        c, width = self.split[0], self.split[0] // self.rep_groups
        blocks = [k[:, g * width : (g + 1) * width] for g, k in enumerate(taps.chunk(self.rep_groups))]
        self.spatial.weight.copy_(torch.cat(blocks))
        self.pointwise.weight.copy_(points[:, :c, None, None])
        self.plain.weight.copy_(points[:, c:, None, None])
        whole = taps + points[..., None, None] * pool.view(self.kernel_size)
        bias = whole.new_zeros(self.out_channels) if conv.bias is None else conv.bias.double()
        for norm, part in ((self.norm1, slice(c)), (self.norm2, slice(c, None))):
            branch = torch.zeros_like(whole)
            branch[:, part] = whole[:, part]
            linear_norm_(norm, mean_squares(branch.flatten(1), gram), 1.0, bias)
        if self.plain.bias is not None:
            self.plain.bias.copy_(0 * bias if isinstance(self.norm2, nn.BatchNorm2d) else bias)
        return True

    def _owned(self, like: Tensor) -> Tensor:
        """Which filter has a k×k on which input channel: bool `O C`."""
        owned = torch.zeros(self.out_channels, self.in_channels, dtype=torch.bool, device=like.device)
        width = self.split[0] // self.rep_groups
        for g, filters in enumerate(owned.chunk(self.rep_groups)):
            filters[:, g * width : (g + 1) * width] = True
        return owned

    def _weighted(self, target: Tensor, gram: Tensor, pool: Tensor, energy: float, start: Tensor) -> Tensor:
        """The best taps of the k×k, averages of the 1×1s, `O (C R·S + C)`; pixels outside of the kernel are white."""
        shape = self.in_channels, len(pool)
        cross, pooled = target.flatten(1) @ gram, gram.unflatten(1, shape) @ pool  # O D, D C
        corner = (pooled.T.unflatten(1, shape) @ pool).contiguous()
        unseen = gram.diagonal().view(shape).mean(1) * (energy - pool.square().sum())
        corner = corner + torch.diag(unseen.clamp_min(0))
        normal = torch.cat([torch.cat([gram, pooled], 1), torch.cat([pooled.T, corner], 1)])
        owned = self._owned(target)
        live = torch.cat([owned.repeat_interleave(len(pool), 1), ~owned], 1)
        return nearest_rows(torch.cat([cross, cross.unflatten(1, shape) @ pool], 1), normal, start, live)

    @classmethod
    def cost(cls, spec: ConvSpec, *, alpha: float = 0.5, rep_groups: int = 2, inner_norms: int = 2) -> Cost:
        c = split_channels(spec.c, alpha)
        weights = c * spec.o * spec.kernel[0] * spec.kernel[1] // rep_groups + spec.c * spec.o
        return Cost.of(
            spec,
            macs=spec.n * spec.p * spec.q * weights,
            params=weights + spec.o * spec.bias,
            norm_params=2 * spec.o * inner_norms,
        )

    @classmethod
    def why_not(cls, spec: ConvSpec, *, alpha: float = 0.5, rep_groups: int = 2, inner_norms: int = 2) -> str | None:
        reason = super().why_not(spec) or needs_odd_centred(spec) or needs_stride_1_or_2(spec)
        if reason := reason or why_not_split(spec.c, alpha):
            return reason
        if inner_norms not in (1, 2):
            return f"inner_norms={inner_norms!r}: 1 or 2"
        c = split_channels(spec.c, alpha)
        if not isinstance(rep_groups, int) or rep_groups < 1 or c % rep_groups or spec.o % rep_groups:
            return f"rep_groups={rep_groups!r} must divide floor(alpha·C)={c} and out_channels={spec.o}"
        return None


class SplitAndBlend(nn.Module):
    """SPConv as deployed at stride 1: a blocked HetConv and a 1×1, blended. `N C H W -> N O P Q`."""

    def __init__(self, folded: SPConv2d) -> None:
        super().__init__()
        spatial, pointwise = folded.spatial, folded.pointwise
        self.split, self.plain, self.in_channels = folded.split, folded.plain, folded.in_channels
        self.representative = HetConv2d(
            spatial.in_channels,
            spatial.out_channels,
            spatial.kernel_size,
            1,
            spatial.padding,
            spatial.dilation,
            padding_mode=spatial.padding_mode,
            device=spatial.weight.device,
            dtype=spatial.weight.dtype,
            part=folded.rep_groups,
            arrangement="blocked",
        )
        self.representative.load_sum_(spatial, pointwise)
        self.eval()

    @batch_or_sample
    def forward(self, x: Tensor) -> Tensor:
        representative, rest = x.split(self.split, 1)
        return gated_sum(self.representative(representative), self.plain(rest))
