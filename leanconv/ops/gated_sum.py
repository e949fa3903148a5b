"""The softmax-pair blend of two branches: two parallel results, weighed per sample and channel by their averages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.activations import check_activation
from leanconv.ops.forms import Pair, averaged, check_channels, finish, joined
from leanconv.ops.fx import leaf_function


@leaf_function
def gated_sum(a: Tensor, b: Tensor) -> Tensor:
    """Blend `g · a + (1 - g) · b`, g = softmax over the pair (mean_hw a, mean_hw b) (SPConv, arXiv:2006.12085).

    Args:
        a, b: `N C P Q`, the same dtype and device.
    Returns: `N C P Q`. The gate is computed in float32 for half types, also under autocast.
    """
    exact = torch.float32 if a.dtype in (torch.bfloat16, torch.float16) else a.dtype
    # The softmax of a pair is the sigmoid of its difference; lerp then blends in one pass over the maps.
    # Averages as sums divided once: the backward of `mean` writes out a whole map, in the wrong layout for
    # channels_last (U-Net base 32, 128 px, one core: 14 % of an SPLConv training step; 3 % in contiguous layout).
    sums = a.sum((2, 3), keepdim=True, dtype=exact) - b.sum((2, 3), keepdim=True, dtype=exact)
    gate = torch.sigmoid(sums / (a.shape[2] * a.shape[3]))
    return torch.lerp(b, a, gate.to(a.dtype))


@dataclass(frozen=True)
class GatedSum:
    """A blend whose second branch is a 1×1, with the affine and the activation that follow: the second pass of SPLConv.

        b = W · x + bias                              x: the concatenation of the inputs
        g = sigmoid(average(a) - average(b))          per sample and channel
        y = act((g ⊙ a + (1 - g) ⊙ b) ⊙ scale + shift)

    Args:
        channels: of each input.
        out_channels: O, of a, b and y.
        bias: whether the 1×1 has one.
        affine: whether scale and shift (a BatchNorm that follows) are there.
        activation, average: as `Separable`'s.

    The weights, in this order: W `O C 1 1` (or `O C`); bias `O`; scale `O`, shift `O`, if they are there.
    """

    channels: tuple[int, ...]
    out_channels: int
    bias: bool = False
    affine: bool = False
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
        return h, w

    def macs(self, h: int, w: int) -> int:
        """Multiply-adds of one sample of that size."""
        return h * w * self.out_channels * (sum(self.channels) + 1)


def gated_pointwise(
    a: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    form: GatedSum,
    a_average: Tensor | None = None,
    averages: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a gated sum in plain PyTorch, for any dtype and device.

    Args:
        a: `N O P Q`, the first branch.
        inputs: `N C_i P Q` each, with C_i as in `form.channels`; they stand for their concatenation.
        weights: in the order that `GatedSum` says.
        a_average: `N O`, and averages: `N C_i` for each input, in float32; computed here where they are not given.
    Returns: `N O P Q` (channels_last), and its average `N O` in float32 (of no numbers unless `form.average`).
    """
    check_channels(inputs, form.channels)
    left = list(weights)
    project, bias = left.pop(0).view(form.out_channels, -1), left.pop(0) if form.bias else None
    b = F.conv2d(joined(inputs), project[:, :, None, None], bias)
    mean_a = averaged(a) if a_average is None else a_average
    # The average of a 1×1's output is the 1×1 of the average: a few numbers in place of a pass over the map.
    means = torch.cat(list(averages) if averages else [averaged(x) for x in inputs], 1)  # N C
    mean_b = F.linear(means, project.to(means.dtype), None if bias is None else bias.to(means.dtype))
    gate = torch.sigmoid(mean_a - mean_b).to(a.dtype)[:, :, None, None]
    y = torch.lerp(b, a, gate)
    if form.affine:
        y = y * left[0][:, None, None] + left[1][:, None, None]
    return finish(y, form.activation, None, form.average)
