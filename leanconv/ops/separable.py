"""Depthwise stencils, then a 1×1 projection, bias, residual and activation, in one pass.

    t_0 = concatenation of the inputs
    t_i = concatenation over the stencils s of stage i:  act_s(stencil_s(t_{i-1}[first_s : first_s + channels_s]))
    y   = act(W · (gate ⊙ t_last) + bias + residual)

A chain of stencils is one stage after the other (SPLConv, XSepConv). A parallel set is one stage with several
(Inception, FuSeConv). No stage: a plain 1×1 convolution. No projection (`out_channels=None`): depthwise only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.activations import ACTIVATIONS, check_activation
from leanconv.ops.forms import Pair, Stencil, check_channels, finish, joined, out_size, padded_conv


@dataclass(frozen=True)
class Separable:
    """What is known of a separable convolution beforehand.

    Args:
        channels: of each input.
        stages: of stencils; see `Stencil`.
        out_channels: O of the 1×1; None where there is none.
        bias: whether the 1×1 has one.
        activation: the last one, after the residual sum.
        residual: whether a map of the output's shape is added before the activation.
        gate: whether `N M` numbers scale the projection's input (squeeze-and-excitation).
        average: whether the output's average over the pixels is wanted too.

    The weights, in this order: for each stencil of each stage its taps `C 1 R S`, then its bias `C` if it has one. An
    identity has none. Then the 1×1 `O M 1 1` (or `O M`) and its bias `O` if it has one.
    """

    channels: tuple[int, ...]
    stages: tuple[tuple[Stencil, ...], ...] = ()
    out_channels: int | None = None
    bias: bool = False
    activation: str = "none"
    residual: bool = False
    gate: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        check_activation(self.activation)
        width = sum(self.channels)
        for stage in self.stages:
            for stencil in stage:
                if stencil.channels < 1 or stencil.first < 0 or stencil.first + stencil.channels > width:
                    raise BadInput(f"{stencil} reads channels that are not among the {width} before it")
            width = sum(stencil.channels for stencil in stage)
        if self.out_channels is None and (self.bias or self.gate):
            raise BadInput("bias and gate belong to the 1×1: without out_channels there is none")

    @property
    def middle(self) -> int:
        """M: channels after the last stage."""
        return sum(s.channels for s in self.stages[-1]) if self.stages else sum(self.channels)

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.middle if self.out_channels is None else self.out_channels

    def size(self, h: int, w: int) -> Pair:
        """Height and width of the output. Raises BadInput where a stencil would get an empty map."""
        for stage in self.stages:
            if min(h, w) < 1:
                raise BadInput(f"a map between two stencils would have {h}×{w} pixels: the input is too small")
            sizes = {out_size(h, w, s.kernel, s.stride, s.dilation, s.padding) for s in stage}
            if len(sizes) != 1:
                raise BadInput(f"the stencils of one stage disagree on the size of their output: {sorted(sizes)}")
            h, w = sizes.pop()
        return h, w

    def macs(self, h: int, w: int) -> int:
        """Multiply-adds of one sample of that size."""
        total = 0
        for stage in self.stages:
            h, w = stage[0].size(h, w)
            total += h * w * sum(s.channels * s.kernel[0] * s.kernel[1] for s in stage if not s.identity)
        return total + h * w * self.middle * (self.out_channels or 0)


def side_by_side(x: Tensor, stage: Sequence[Stencil], left: list[Tensor]) -> list[Tensor]:
    """The maps of one stage's stencils, before they are joined. Takes their weights from the front of `left`."""
    parts = []
    for s in stage:
        part = x[:, s.first : s.first + s.channels]
        if s.identity:
            part = part[:, :, :: s.stride[0], :: s.stride[1]]
        else:
            taps, bias = left.pop(0), left.pop(0) if s.bias else None
            part = padded_conv(part, taps, bias, s.stride, s.dilation, s.padding, s.channels)
        parts.append(ACTIVATIONS[s.activation](part))
    return parts


def separable(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    form: Separable,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a separable convolution in plain PyTorch, for any dtype and device.

    Args:
        inputs: `N C_i H W` each, with C_i as in `form.channels`; they stand for their concatenation.
        weights: in the order that `Separable` says.
        residual: `N O P Q` where the form has one. gate: `N M` where the form has one.
    Returns: `N O P Q` (channels_last), and its average `N O` in float32 (of no numbers unless `form.average`).
    """
    check_channels(inputs, form.channels)
    x, left = joined(inputs), list(weights)
    for stage in form.stages:
        x = joined(side_by_side(x, stage, left))
    if form.out_channels is not None:
        if gate is not None:
            x = x * gate.to(x.dtype)[:, :, None, None]
        project = left.pop(0).view(form.out_channels, form.middle, 1, 1)
        x = F.conv2d(x, project, left.pop(0) if form.bias else None)
    return finish(x, form.activation, residual, form.average)
