"""Depthwise separable convolution: B k×k filters per channel, one by default, then a 1×1.

    t[n,m,p,q] = Σ_r Σ_s D[m,r,s] · x[n, ⌊m/B⌋, p·stride + r·dilation - pad, q·stride + s·dilation - pad]    m < B·C
    y[n,o,p,q] = Σ_m W[o,m] · t[n,m,p,q]

MACs N·P·Q·B·(C·R·S + C·O), against N·P·Q·O·C·R·S: B/O + B/(R·S) of them. With B = R·S it can be any dense kernel.
`block=True` is MobileNetV1's whole block, DW → BN → ReLU → PW → BN → ReLU.
Source: Howard et al. 2017, arXiv:1704.04861, section 3.1. B > 1 (`multiplier`): Guo et al. 2018, arXiv:1808.05517,
who decouple the kernels of trained networks so.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, deployed, kaiming_fan_out_
from leanconv.nn.starts import exact_weight, nearest_pair, take_bias_, take_filters_
from leanconv.ops.fold import fold_bn_, scale_conv_, then_pointwise, ungroup
from leanconv.registry import register
from leanconv.spec import ConvSpec


class SpatialThenPointwise(Operator):
    """A k×k convolution in G groups from C to B·C channels, then a 1×1 to O: what the separable operators share."""

    accepts = frozenset({"stride", "dilation", "padding_mode"})
    block: bool

    def _build(self, spec: ConvSpec, groups: int, block: bool, multiplier: int = 1, **factory: Any) -> None:
        self.block, width = block, multiplier * spec.c
        self.spatial = nn.Conv2d(
            spec.c,
            width,
            spec.kernel,
            spec.stride,
            spec.padding,
            spec.dilation,
            groups,
            False,
            spec.padding_mode,
            **factory,
        )
        self.pointwise = nn.Conv2d(width, spec.o, 1, bias=spec.bias, **factory)
        if block:
            self.norm1, self.act1 = nn.BatchNorm2d(width, **factory), nn.ReLU(inplace=True)
            self.norm2, self.act2 = nn.BatchNorm2d(spec.o, **factory), nn.ReLU(inplace=True)
        kaiming_fan_out_(self.spatial, self.pointwise)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        x = self.spatial(x)
        if self.block:
            x = self.act1(self.norm1(x))
        x = self.pointwise(x)
        return self.act2(self.norm2(x)) if self.block else x

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The nearest factors of the dense kernel: per group the best rank B·C/G (Eckart-Young).

        That is the optimum without a gram. With one the groups are coupled, and the result is near to the optimum: the
        filters and the 1×1 take turns, from the better of the white optimum and each group's in its own metric. A block
        (BatchNorms and ReLUs) starts fresh.
        """
        if self.block:
            return False
        groups, width = self.spatial.groups, self.spatial.out_channels
        pointwise, filters = nearest_pair(exact_weight(conv), gram, groups, width // groups)
        take_filters_(self.spatial.weight, filters)
        self.pointwise.weight.copy_(pointwise[..., None, None])
        take_bias_(self.pointwise.bias, conv)
        return True

    def fold(self) -> nn.Module:
        if not self.block or isinstance(self.norm1, nn.Identity):  # nothing to fold, or folded before
            return self
        folded = deployed(self)
        for conv, norm in ((folded.spatial, "norm1"), (folded.pointwise, "norm2")):
            fold_bn_(conv, getattr(folded, norm))
            setattr(folded, norm, nn.Identity())
        return folded  # type: ignore[no-any-return]

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        if self.block:  # a ReLU stands last
            return False
        scale_conv_(self.pointwise, scale, shift)
        return True

    def dense_weight(self) -> Tensor | None:  # O C R S
        if self.block:
            return None
        return then_pointwise(ungroup(self.spatial.weight, self.spatial.groups), self.pointwise.weight)


def spatial_then_pointwise_cost(spec: ConvSpec, groups: int, block: bool, multiplier: int = 1) -> Cost:
    """B·C·(C/G)·R·S + B·C·O weights, that many MACs per output pixel; the block adds two BatchNorms."""
    width = multiplier * spec.c
    weights = width * spec.c // groups * spec.kernel[0] * spec.kernel[1] + width * spec.o
    return Cost.of(
        spec,
        macs=spec.n * spec.p * spec.q * weights,
        params=weights + spec.o * spec.bias,
        norm_params=2 * (width + spec.o) * block,
    )


@register("depthwise_separable")
class DepthwiseSeparableConv2d(SpatialThenPointwise):
    """DW then PW, bare as a drop-in; the output bias (if any) is the 1×1's.

    Args: `nn.Conv2d`'s; and
        multiplier: k×k filters of each input channel (depth multiplier): more of them keep more of a trained kernel.
        block: build the paper's whole block, with BatchNorm and ReLU after each of the two.
    """

    paper = "Howard et al. 2017, arXiv:1704.04861"
    multiplier = 1  # of layers that were pickled before there was one

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
        multiplier: int = 1,
        block: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self.multiplier = multiplier
        spec = self._check(*sizes, multiplier=multiplier, block=block)
        self._build(spec, in_channels, block, multiplier, device=device, dtype=dtype)

    @classmethod
    def cost(cls, spec: ConvSpec, *, multiplier: int = 1, block: bool = False) -> Cost:
        return spatial_then_pointwise_cost(spec, spec.c, block, multiplier)

    @classmethod
    def why_not(cls, spec: ConvSpec, *, multiplier: int = 1, block: bool = False) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if not isinstance(multiplier, int) or isinstance(multiplier, bool) or multiplier < 1:
            return f"multiplier={multiplier!r} must be a whole number of at least 1"
        return None
