"""Transposed convolution whose kernel equals its stride: a 1×1 to O·k·k channels whose results lie side by side.

y[n,o,p·k + i,q·k + j] = act(Σ_c W[c,o,i,j] · x[n,c,p,q] + bias[o])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.activations import check_activation
from leanconv.ops.forms import Pair, check_channels, finish, joined


@dataclass(frozen=True)
class Upsample:
    """What is known of it beforehand.

    Args:
        channels: of each input.
        out_channels: O.
        factor: k, kernel and stride.
        bias: whether it has one.
        activation, average: as `Separable`'s.

    The weights, in this order: W `C O k k` (as ConvTranspose2d has it), then the bias `O` if it has one.
    """

    channels: tuple[int, ...]
    out_channels: int
    factor: int = 2
    bias: bool = False
    activation: str = "none"
    average: bool = False

    def __post_init__(self) -> None:
        check_activation(self.activation)

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.out_channels

    def size(self, h: int, w: int) -> Pair:
        """Height and width of the output."""
        return h * self.factor, w * self.factor

    def macs(self, h: int, w: int) -> int:
        """Multiply-adds of one sample of that size."""
        return h * w * sum(self.channels) * self.out_channels * self.factor**2


def upsample(inputs: Sequence[Tensor], weights: Sequence[Tensor], form: Upsample) -> tuple[Tensor, Tensor]:
    """Run an upsampling in plain PyTorch, for any dtype and device.

    Args:
        inputs: `N C_i H W` each, with C_i as in `form.channels`; they stand for their concatenation.
        weights: in the order that `Upsample` says.
    Returns: `N O k·H k·W` (channels_last), and its average `N O` in float32 (of no numbers unless `form.average`).
    """
    check_channels(inputs, form.channels)
    y = F.conv_transpose2d(joined(inputs), weights[0], weights[1] if form.bias else None, form.factor)
    return finish(y, form.activation, None, form.average)
