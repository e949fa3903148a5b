"""Group convolution, summed with a 1×1 over the whole input or followed by one, in one pass.

    z = conv_RxS(x; K, G groups) [+ P · x at the kernel's centre] + bias
    y = act(z + residual)                                     without `project`
    y = act(W · inner_act(z) + project_bias + residual)       with it

`pointwise` is HetConv's and SPConv's sum, `project` the group convolution that a 1×1 follows (GWC + PWC). G = 1 is the
dense convolution. `interleaved`: group g owns channels g, g + G, g + 2G, ... of the input and of z, as in HetConv's
"shifted" arrangement.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.ops.activations import ACTIVATIONS, check_activation
from leanconv.ops.fold import ungroup
from leanconv.ops.forms import Pair, Sides, check_channels, finish, joined, out_size, padded_conv


@dataclass(frozen=True)
class Grouped:
    """What is known of a grouped convolution beforehand.

    Args:
        channels: of each input.
        out_channels: of the group convolution (of the output, unless `project`).
        kernel, stride, dilation, padding: as `Stencil`'s.
        groups: G.
        interleaved: whether a group owns every G-th channel, in place of a contiguous block.
        pointwise: whether a 1×1 of the whole input, at the pixel under the kernel's centre, is added.
        bias: whether a bias follows.
        inner_activation: before the projection; "none" without one.
        project: channels of the 1×1 that follows; None where none does.
        project_bias: whether that one has a bias.
        activation, residual, average: as `Separable`'s.

    The weights, in this order: K `O C/G R S`, its filters group by group. If interleaved, filter g·O/G + j computes
    channel j·G + g from channels g, g + G, ... . Then, if they are there: pointwise `O C 1 1` (or `O C`) in the natural
    order of both channels; bias `O` (natural order); project `O' O 1 1` (or `O' O`); project_bias `O'`.
    """

    channels: tuple[int, ...]
    out_channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    groups: int = 1
    interleaved: bool = False
    pointwise: bool = False
    bias: bool = False
    inner_activation: str = "none"
    project: int | None = None
    project_bias: bool = False
    activation: str = "none"
    residual: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        check_activation(self.activation)
        check_activation(self.inner_activation)
        if sum(self.channels) % self.groups or self.out_channels % self.groups:
            raise BadInput(f"{self.groups} groups do not divide {sum(self.channels)} and {self.out_channels} channels")
        if self.pointwise and not (self.kernel[0] % 2 and self.kernel[1] % 2):
            raise BadInput(f"a {self.kernel} kernel has no centre for the 1×1 beside it")
        if self.project is None and (self.project_bias or self.inner_activation != "none"):
            raise BadInput("project_bias and inner_activation belong to the 1×1 that follows: project is None")

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.out_channels if self.project is None else self.project

    def size(self, h: int, w: int) -> Pair:
        """Height and width of the output."""
        return out_size(h, w, self.kernel, self.stride, self.dilation, self.padding)

    def macs(self, h: int, w: int) -> int:
        """Multiply-adds of one sample of that size."""
        p, q = self.size(h, w)
        c, o, taps = sum(self.channels), self.out_channels, self.kernel[0] * self.kernel[1]
        return p * q * (o * c // self.groups * taps + o * c * self.pointwise + o * (self.project or 0))


def centre_sides(form: Grouped) -> Sides:
    """The padding with which a 1×1 of the form's stride sees the pixels under the kernel's centre."""
    (r, s), (dh, dw), (top, bottom, left, right) = form.kernel, form.dilation, form.padding
    h, w = r // 2 * dh, s // 2 * dw
    return top - h, bottom - h, left - w, right - w


def merge_groups(form: Grouped, weights: Sequence[Tensor], groups: int) -> tuple[Grouped, list[Tensor]]:
    """The same sums in fewer, wider groups, with zeros in the kernel between those that become one.

    One group is the dense convolution: its kernel takes the 1×1 beside it into its centre.

    Args:
        weights: of any type. Integers must have room for the sum of centre and 1×1.
        groups: how many are left; they divide `form.groups`.
    """
    kernel, *rest = weights
    times, each = form.groups // groups, kernel.unflatten(0, (form.groups, -1))  # G O/G C/G R S
    o, c, *taps = each.shape[1:]
    if form.interleaved:  # groups h, h + groups, ... become group h
        each = each.unflatten(0, (times, groups)).transpose(0, 1)
    else:
        each = each.unflatten(0, (groups, times))
    kernel = torch.cat([ungroup(part.flatten(0, 1), times) for part in each])
    if form.interleaved:  # they take turns in its channels
        kernel = kernel.view(groups, times, o, times, c, *taps).transpose(1, 2).transpose(3, 4)
        kernel = kernel.reshape(groups * times * o, times * c, *taps)
    if groups > 1:
        return replace(form, groups=groups), [kernel, *rest]
    if form.pointwise:
        kernel[:, :, taps[0] // 2, taps[1] // 2] += rest.pop(0).reshape(kernel.shape[:2])
    return replace(form, groups=1, interleaved=False, pointwise=False), [kernel, *rest]


def fewer_groups(form: Grouped, lanes: int) -> int:
    """The most groups that divide the form's and fill `lanes` with their inputs and with their outputs; else 1."""
    least = min(sum(form.channels), form.out_channels)
    fitting = [g for g in range(1, form.groups + 1) if form.groups % g == 0 and least // g >= lanes]
    return max(fitting, default=1)


def grouped(
    inputs: Sequence[Tensor], weights: Sequence[Tensor], form: Grouped, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Run a grouped convolution in plain PyTorch, for any dtype and device.

    Args:
        inputs: `N C_i H W` each, with C_i as in `form.channels`; they stand for their concatenation.
        weights: in the order that `Grouped` says.
        residual: `N O P Q` where the form has one.
    Returns: `N O P Q` (channels_last), and its average `N O` in float32 (of no numbers unless `form.average`).
    """
    check_channels(inputs, form.channels)
    x, left = joined(inputs), list(weights)
    interleaved = x.unflatten(1, (-1, form.groups)).transpose(1, 2).flatten(1, 2) if form.interleaved else x
    z = padded_conv(interleaved, left.pop(0), None, form.stride, form.dilation, form.padding, form.groups)
    if form.interleaved:
        z = z.unflatten(1, (form.groups, -1)).transpose(1, 2).flatten(1, 2)
    if form.pointwise:
        top, bottom, start, end = centre_sides(form)
        weight = left.pop(0).view(form.out_channels, -1, 1, 1)
        sides = (start, end, top, bottom)
        wide = F.pad(x, [max(side, 0) for side in sides])  # first: a map may be smaller than what is cut off
        z = z + F.conv2d(F.pad(wide, [min(side, 0) for side in sides]), weight, stride=form.stride)
    if form.bias:
        z = z + left.pop(0)[:, None, None]
    if form.project is not None:
        z = ACTIVATIONS[form.inner_activation](z)
        project = left.pop(0).view(form.project, form.out_channels, 1, 1)
        z = F.conv2d(z, project, left.pop(0) if form.project_bias else None)
    return finish(z, form.activation, residual, form.average)
