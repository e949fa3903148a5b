"""The standard convolution, as an operator like the others: the yardstick.

    y[n,o,p,q] = Σ_c Σ_r Σ_s w[o,c,r,s] · x[n, c, p·stride + r·dilation - pad, q·stride + s·dilation - pad]

MACs N·P·Q·O·(C/G)·R·S. Folds to `nn.Conv2d`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost import Cost, dense_cost
from leanconv.nn.base import Operator
from leanconv.nn.starts import take_bias_
from leanconv.ops.fold import scale_conv_
from leanconv.registry import register
from leanconv.spec import ConvSpec


@register("conv")
class Conv2d(nn.Conv2d, Operator):  # type: ignore[misc]  # the same attributes, declared twice
    """`nn.Conv2d` with the operator contract; every argument, key and number is `nn.Conv2d`'s."""

    paper = "the standard convolution"
    accepts = frozenset({"stride", "dilation", "groups", "padding_mode"})
    replaces = frozenset({"dense", "depthwise", "pointwise", "grouped"})

    def options(self) -> dict[str, Any]:
        return {}

    def extra_repr(self) -> str:
        return nn.Conv2d.extra_repr(self)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> "Conv2d":
        spec = ConvSpec.from_conv(conv)
        new = cls(**spec.arguments(), device=conv.weight.device, dtype=conv.weight.dtype)
        return new.train(conv.training)

    def project_(self, conv: nn.Conv2d, gram: Tensor | None = None) -> bool:
        """The layer itself."""
        self.weight.copy_(conv.weight)
        take_bias_(self.bias, conv)
        return True

    def fold(self) -> nn.Module:
        plain = ConvSpec.from_conv(self).conv(device=self.weight.device, dtype=self.weight.dtype)
        plain.load_state_dict(self.state_dict())
        return plain.eval()

    @torch.no_grad()
    def scale_output_(self, scale: Tensor, shift: Tensor) -> bool:
        scale_conv_(self, scale, shift)
        return True

    def dense_weight(self) -> Tensor:  # O C/G R S
        return self.weight

    @classmethod
    def cost(cls, spec: ConvSpec, **options: Any) -> Cost:
        return dense_cost(spec)
