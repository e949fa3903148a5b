"""Forms: what is known of a primitive before any data arrives. A form is the key of its kernel.

Tensors are `N C H W` in shape; several inputs stand for their concatenation over channels, which is never stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.activations import ACTIVATIONS, check_activation
from leanconv.spec import out_length

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]  # top, bottom, left, right


class Form(Protocol):
    """What every form says of its primitive. A form is a frozen dataclass: hashable, and equal by its fields."""

    @property
    def average(self) -> bool:
        """Whether the output's average over the pixels is a second result."""

    @property
    def width(self) -> int:
        """Channels of the output."""

    def size(self, h: int, w: int) -> Pair:
        """Height and width of the output."""

    def macs(self, h: int, w: int) -> int:
        """Multiply-adds of one sample of that size."""


@dataclass(frozen=True)
class Stencil:
    """One depthwise convolution of a slice of channels, then an activation.

    Args:
        first, channels: the slice of the stage's input that it reads; slices may overlap (FuSeConv "full").
        kernel, stride, dilation: R×S taps and their steps, rows first.
        padding: zeros around: top, bottom, left, right; the two sides may differ.
        bias: whether a bias follows.
        identity: no taps and no bias at all, kernel 1×1: the channels pass (Inception); a stride still subsamples.
        activation: one of `ops.activations.ACTIVATIONS`.
    """

    first: int
    channels: int
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    bias: bool = False
    identity: bool = False
    activation: str = "none"

    def __post_init__(self) -> None:
        check_activation(self.activation)
        if self.identity and (self.kernel != (1, 1) or self.padding != (0, 0, 0, 0) or self.bias):
            raise BadInput("an identity stencil has a 1×1 kernel, no padding and no bias")

    def size(self, h: int, w: int) -> Pair:
        """Height and width after it, by Conv2d's formula."""
        return out_size(h, w, self.kernel, self.stride, self.dilation, self.padding)


def out_size(h: int, w: int, kernel: Pair, stride: Pair, dilation: Pair, padding: Sides) -> Pair:
    """P and Q of a convolution, by Conv2d's formula."""
    top, bottom, left, right = padding
    rows = out_length(h, kernel[0], stride[0], dilation[0], top + bottom)
    return rows, out_length(w, kernel[1], stride[1], dilation[1], left + right)


def padded_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, dilation: Pair, padding: Sides, groups: int
) -> Tensor:
    """`conv2d` with a padding for each side."""
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)


def joined(inputs: Sequence[Tensor]) -> Tensor:
    """The concatenation that several inputs stand for."""
    return inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), 1)


def finish(y: Tensor, activation: str, residual: Tensor | None, average: bool) -> tuple[Tensor, Tensor]:
    """activation(y + residual), channels_last, and its average over the pixels: `N O P Q`, `N O` (or no numbers)."""
    y = ACTIVATIONS[activation](y if residual is None else y + residual)
    y = y.contiguous(memory_format=torch.channels_last)
    return y, averaged(y) if average else y.new_empty(0, dtype=torch.float32)


def averaged(x: Tensor) -> Tensor:
    """The average over height and width: `N C H W -> N C`, float32 (float64 for float64)."""
    return x.mean((2, 3), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def check_channels(inputs: Sequence[Tensor], channels: Sequence[int]) -> None:
    """Raises BadInput unless the inputs are maps of these channels."""
    found = [x.shape[1] if x.dim() == 4 else -1 for x in inputs]
    if found != list(channels):
        raise BadInput(f"the form is for inputs of {list(channels)} channels, got {[tuple(x.shape) for x in inputs]}")
