"""Depthwise separable convolution: one k×k filter per channel, then a 1×1.

    t[n,c,p,q] = Σ_r Σ_s D[c,r,s] · x[n, c, p·stride + r·dilation - pad, q·stride + s·dilation - pad]
    y[n,o,p,q] = Σ_c W[o,c] · t[n,c,p,q]

MACs N·P·Q·(C·R·S + C·O), against N·P·Q·O·C·R·S: 1/O + 1/(R·S) of them.
`block=True` is MobileNetV1's whole block, DW → BN → ReLU → PW → BN → ReLU.
Source: Howard et al. 2017, arXiv:1704.04861, section 3.1.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost
from leanconv.nn.base import Operator, deployed, kaiming_fan_out_
from leanconv.ops.fold import fold_bn_, scale_conv_, then_pointwise, ungroup
from leanconv.registry import register
from leanconv.spec import ConvSpec


class SpatialThenPointwise(Operator):
    """A k×k convolution in G groups from C to C channels, then a 1×1 to O: what the separable operators share."""

    accepts = frozenset({"stride", "dilation", "padding_mode"})
    block: bool

    def _build(self, spec: ConvSpec, groups: int, block: bool, **factory: Any) -> None:
        self.block = block
        self.spatial = nn.Conv2d(
            spec.c,
            spec.c,
            spec.kernel,
            spec.stride,
            spec.padding,
            spec.dilation,
            groups,
            False,
            spec.padding_mode,
            **factory,
        )
        self.pointwise = nn.Conv2d(spec.c, spec.o, 1, bias=spec.bias, **factory)
        if block:
            self.norm1, self.act1 = nn.BatchNorm2d(spec.c, **factory), nn.ReLU(inplace=True)
            self.norm2, self.act2 = nn.BatchNorm2d(spec.o, **factory), nn.ReLU(inplace=True)
        kaiming_fan_out_(self.spatial, self.pointwise)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        x = self.spatial(x)
        if self.block:
            x = self.act1(self.norm1(x))
        x = self.pointwise(x)
        return self.act2(self.norm2(x)) if self.block else x

    @torch.no_grad()
    def project_(self, conv: nn.Conv2d) -> bool:
        """Per group the best rank-(C/G) factors of its `O × (C/G·R·S)` slice of the dense kernel (Eckart-Young)."""
        if self.block:
            return False
        groups, rank = self.spatial.groups, self.in_channels // self.spatial.groups
        slices = conv.weight.double().unflatten(1, (groups, rank)).transpose(0, 1)  # O (G C/G) R S -> G O C/G R S
        u, s, v = torch.linalg.svd(slices.flatten(2), full_matrices=False)
        found = min(rank, s.shape[1])  # fewer than C/G only where O < C/G: the surplus keeps its fresh filters
        root = s[:, :found].sqrt()
        kernel = self.spatial.weight.unflatten(0, (groups, rank))  # (G C/G) C/G R S -> G C/G C/G R S
        kernel[:, :found] = (v[:, :found] * root[..., None]).reshape_as(kernel[:, :found]).to(kernel)
        weight = torch.zeros(self.out_channels, groups, rank, dtype=torch.double, device=conv.weight.device)
        weight[..., :found] = (u[..., :found] * root[:, None]).transpose(0, 1)  # G O M -> O G M
        self.pointwise.weight.copy_(weight.flatten(1)[..., None, None].to(kernel))
        if self.pointwise.bias is not None and conv.bias is not None:
            self.pointwise.bias.copy_(conv.bias)
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


def spatial_then_pointwise_cost(spec: ConvSpec, groups: int, block: bool) -> Cost:
    """C·(C/G)·R·S + C·O weights, that many MACs per output pixel; the block adds two BatchNorms."""
    weights = spec.c * spec.c // groups * spec.kernel[0] * spec.kernel[1] + spec.c * spec.o
    return Cost.of(
        spec,
        macs=spec.n * spec.p * spec.q * weights,
        params=weights + spec.o * spec.bias,
        norm_params=2 * (spec.c + spec.o) * block,
    )


@register("depthwise_separable")
class DepthwiseSeparableConv2d(SpatialThenPointwise):
    """DW then PW, bare as a drop-in; the output bias (if any) is the 1×1's.

    Args: `nn.Conv2d`'s; and
        block: build the paper's whole block, with BatchNorm and ReLU after each of the two.
    """

    paper = "Howard et al. 2017, arXiv:1704.04861"

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
        block: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self._build(self._check(*sizes, block=block), in_channels, block, device=device, dtype=dtype)

    @classmethod
    def cost(cls, spec: ConvSpec, *, block: bool = False) -> Cost:
        return spatial_then_pointwise_cost(spec, spec.c, block)
