"""Group convolution, then a 1×1 (GWC + PWC): depthwise separable with fewer, wider groups.

    t[n,c,p,q] = Σ_{i in group of c} Σ_r Σ_s K[c,i,r,s] · x[n, i, p·stride + r·dilation - pad, ...]
    y[n,o,p,q] = Σ_c W[o,c] · t[n,c,p,q]

MACs N·P·Q·(C²·R·S/G + C·O); G = `part`, the number of groups (HetConv's text calls it "group size"). The group
convolution goes C -> C: only so are the figures met that the HetConv paper prints (its eq. 10 says C -> O).
`block=True` puts BatchNorm and ReLU after each of the two.
Source: Krizhevsky et al. 2012 (groups); Singh et al. 2019, arXiv:1903.04120, table 1 (GWC4_PWC).
"""

from typing import Any

from leanconv.cost import Cost
from leanconv.nn.separable import SpatialThenPointwise, spatial_then_pointwise_cost
from leanconv.registry import register
from leanconv.spec import ConvSpec


@register("group_pointwise")
class GroupPointwiseConv2d(SpatialThenPointwise):
    """A group convolution C -> C, then a 1×1 C -> O; the output bias (if any) is the 1×1's.

    Args: `nn.Conv2d`'s; and
        part: number of groups of the k×k convolution; divides `in_channels`.
        block: with BatchNorm and ReLU after each of the two.
    """

    paper = "Singh et al. 2019, arXiv:1903.04120 (GWC + PWC)"

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
        part: int = 4,
        block: bool = False,
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        self.part = part
        self._build(self._check(*sizes, part=part, block=block), part, block, device=device, dtype=dtype)

    @classmethod
    def cost(cls, spec: ConvSpec, *, part: int = 4, block: bool = False) -> Cost:
        return spatial_then_pointwise_cost(spec, part, block)

    @classmethod
    def why_not(cls, spec: ConvSpec, *, part: int = 4, block: bool = False) -> str | None:
        if reason := super().why_not(spec):
            return reason
        if not isinstance(part, int) or part < 1 or spec.c % part:
            return f"part={part!r} does not divide in_channels={spec.c}; type a divisor of it"
        return None
