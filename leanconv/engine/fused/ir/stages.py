"""The stages of a block: a convolution, or depthwise branches side by side.

Weights are float64 while the graph is rewritten: folding adds no rounding of its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from leanconv.ops.forms import Sides, Stencil, out_size


@dataclass(frozen=True)
class Stage:
    """One convolution with its bias and activation. `weight`: `O C/G R S`."""

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, int] = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    act: str = ""
    interleaved: bool = False  # group g reads and writes channels g, g + G, ...; filters lie group by group

    @property
    def c(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def o(self) -> int:
        return self.weight.shape[0]

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.weight.shape[2], self.weight.shape[3])

    @property
    def depthwise(self) -> bool:
        return self.groups == self.c == self.o

    @property
    def pointwise(self) -> bool:
        """A matrix product pixel by pixel."""
        return self.subsampling and self.stride == (1, 1)

    @property
    def subsampling(self) -> bool:
        """A 1×1 that may have a stride: an identity that skips pixels, then a product."""
        return self.kernel == (1, 1) and self.groups == 1 and not any(self.padding)

    @property
    def symmetric(self) -> bool:
        top, bottom, left, right = self.padding
        return top == bottom and left == right

    @property
    def centred(self) -> bool:
        """Whether the kernel has a tap in its middle, which reads the pixel of the output, before any stride."""
        (top, _, left, _), (dh, dw), (r, s) = self.padding, self.dilation, self.kernel
        return bool(r % 2 and s % 2) and (top, left) == (r // 2 * dh, s // 2 * dw)

    def channels(self) -> tuple[Tensor, Tensor]:
        """Of each filter: its output channel, `O 1`, and its input channels, `O C/G`."""
        groups, filters = self.groups, torch.arange(self.o, device=self.weight.device)[:, None]
        own, each = torch.arange(self.c // groups, device=self.weight.device), self.o // groups
        group, index = filters // each, filters % each
        if self.interleaved:
            return index * groups + group, own * groups + group
        return filters, group * len(own) + own

    @property
    def weights(self) -> list[Tensor]:
        """The weight, and the bias if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    @property
    def label(self) -> str:
        if self.pointwise:
            return "1x1"
        stride = f"/{self.stride[0]}" if self.stride != (1, 1) else ""
        dilation = f" d{self.dilation[0]}" if self.dilation != (1, 1) else ""
        groups = f"{'interleaved ' * self.interleaved}g{self.groups} " if self.groups > 1 else ""
        return ("dw" if self.depthwise else groups) + "x".join(map(str, self.kernel)) + stride + dilation

    def size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the output."""
        return out_size(h, w, self.kernel, self.stride, self.dilation, self.padding)

    def stencil(self, first: int, act: str) -> Stencil:
        """A depthwise stage as a stencil of `leanconv.ops`, over the channels from `first` on."""
        return Stencil(
            first,
            self.c,
            self.kernel,
            self.stride,
            self.dilation,
            self.padding,
            self.bias is not None,
            activation=act or "none",
        )


class Branch(NamedTuple):
    """`channels` channels from `first` on, through a depthwise stage; unchanged where `stage` is None."""

    first: int
    channels: int
    stage: Stage | None


@dataclass(frozen=True)
class Branches:
    """Depthwise stencils side by side (Inception, FuSeConv): their outputs are concatenated. `c`: input channels."""

    branches: tuple[Branch, ...]
    c: int
    act: str = ""  # each branch has its own, in its stage

    depthwise = pointwise = interleaved = subsampling = False
    groups = 1

    @property
    def o(self) -> int:
        return sum(branch.channels for branch in self.branches)

    @property
    def stages(self) -> list[Stage]:
        return [branch.stage for branch in self.branches if branch.stage]

    @property
    def label(self) -> str:
        return "(" + " | ".join(stage.label if stage else "-" for _, _, stage in self.branches) + ")"

    def sizes(self, h: int, w: int) -> set[tuple[int, int]]:
        """Height and width of each branch's output."""
        return {stage.size(h, w) if stage else (h, w) for _, _, stage in self.branches}

    def size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the output."""
        return next((stage.size(h, w) for stage in self.stages), (h, w))

    def stencils(self) -> tuple[Stencil, ...]:
        """The branches as stencils of `leanconv.ops`."""
        return tuple(
            stage.stencil(first, stage.act) if stage else Stencil(first, channels, identity=True)
            for first, channels, stage in self.branches
        )
