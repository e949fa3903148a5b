"""Squeeze-and-excitation: every channel scaled by a gate that sees the averages of all channels.

    y = x · gate(W2 · relu(W1 · mean_hw(x) + b1) + b2)          W1: h×C, W2: C×h, h = max(1, floor(C / reduction))

MACs 2·C·h per sample, 2·C·h + h + C parameters.
Source: Hu et al. 2018, arXiv:1709.01507 (reduction 16; the HetConv paper uses 8).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.ops.exact import exact_mean


class SqueezeExcite(nn.Module):
    """Scale each channel of `N C H W` by a learned gate; an option of the networks, not a convolution.

    Args:
        channels: C.
        reduction: r; the hidden width is max(1, floor(C / r)).
        hidden: the hidden width itself, for networks that round it (MobileNetV3).
        bias: whether the two linear maps have biases.
        gate: "sigmoid" or "hardsigmoid".
    """

    def __init__(
        self, channels: int, reduction: int = 16, bias: bool = True, gate: str = "sigmoid", *, hidden: int | None = None
    ) -> None:
        super().__init__()
        if gate not in ("sigmoid", "hardsigmoid"):
            raise BadInput(f"gate={gate!r}: 'sigmoid' or 'hardsigmoid'")
        if channels < 1 or reduction < 1:
            raise BadInput(f"channels={channels} and reduction={reduction} must be at least 1")
        if hidden is not None and hidden < 1:
            raise BadInput(f"hidden={hidden} must be at least 1")
        self.gate, hidden = gate, hidden or max(1, channels // reduction)
        self.down, self.up = nn.Linear(channels, hidden, bias), nn.Linear(hidden, channels, bias)
        if bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N C H W
        squeezed = exact_mean(x).to(x.dtype)  # N C H W -> N C
        z = self.up(F.relu(self.down(squeezed)))
        gate = torch.sigmoid(z) if self.gate == "sigmoid" else F.hardsigmoid(z)
        return x * gate.to(x.dtype)[..., None, None]
