"""What a block computes: a chain of convolutions over a concatenation, then residual, activation, average.

    h = cat(pieces)
    for each stage:  h = act(conv(h) + bias);  the last one reads h · gate, where the block has a gate
    y = act(h + residual)

Weights are float64 while the graph is rewritten: folding adds no rounding of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanconv.ops.forms import out_size

Sides = tuple[int, int, int, int]  # left, right, top, bottom, as F.pad takes them


@dataclass(frozen=True)
class Stage:
    """One convolution with its bias and activation. `weight`: `O C/G R S`."""

    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, int] = (1, 1)
    sides: Sides = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    act: str = ""
    interleaved: bool = False  # group g reads channels g, g + G, ... and makes such: filters lie group by group

    @property
    def c(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def o(self) -> int:
        return self.weight.shape[0]

    @property
    def taps(self) -> tuple[int, int]:
        return (self.weight.shape[2], self.weight.shape[3])

    @property
    def depthwise(self) -> bool:
        return self.groups == self.c == self.o

    @property
    def pointwise(self) -> bool:
        """A matrix product pixel by pixel."""
        return self.taps == (1, 1) and self.groups == 1 and self.stride == (1, 1) and not any(self.sides)

    @property
    def symmetric(self) -> bool:
        return self.sides[0] == self.sides[1] and self.sides[2] == self.sides[3]

    @property
    def kind(self) -> str:
        if self.pointwise:
            return "1x1"
        taps = "x".join(map(str, self.taps))
        rest = (f"/{self.stride[0]}" if self.stride != (1, 1) else "") + (
            f" d{self.dilation[0]}" if self.dilation != (1, 1) else ""
        )
        return (
            (
                "dw"
                if self.depthwise
                else f"{'interleaved ' * self.interleaved}g{self.groups} "
                if self.groups > 1
                else ""
            )
            + taps
            + rest
        )

    def size(self, h: int, w: int) -> tuple[int, int]:
        """Height and width of the output."""
        left, right, top, bottom = self.sides
        return out_size(h, w, self.taps, self.stride, self.dilation, (top, bottom, left, right))


@dataclass(frozen=True)
class Slices:
    """Stencils side by side, as Inception and FuSeConv have them: each makes some of the output's channels.

    `parts`: first input channel, number of channels, and the depthwise stage, or None where the channels pass.
    """

    parts: tuple[tuple[int, int, Stage | None], ...]
    c: int
    act: str = ""  # of each part: in its own stage

    depthwise = pointwise = interleaved = False
    groups = 1

    @property
    def o(self) -> int:
        return sum(channels for _, channels, _ in self.parts)

    @property
    def kind(self) -> str:
        return "(" + " | ".join(stage.kind if stage else "-" for _, _, stage in self.parts) + ")"

    def size(self, h: int, w: int) -> tuple[int, int]:
        return next((stage.size(h, w) for _, _, stage in self.parts if stage), (h, w))


@dataclass(frozen=True)
class Block:
    """See the formula above. Inputs of its node: `pieces` maps, then the residual, then the gate."""

    stages: tuple[Stage | Slices, ...]
    pieces: int = 1
    residual: bool = False
    gate: bool = False
    act: str = ""  # after the residual
    parallel: Stage | None = None  # a 1x1 over the same input, added to the only stage before its activation
    average: bool = False  # a second result: the average of y over height and width, `N O 1 1`

    def __repr__(self) -> str:
        chain = " ".join(f"{stage.kind}{'+' + stage.act if stage.act else ''}" for stage in self.stages)
        chain += " || 1x1" if self.parallel else ""
        extras = [
            word for word, there in (("residual", self.residual), ("gate", self.gate), (self.act, self.act)) if there
        ]
        return f"[{self.stages[0].c}->{self.stages[-1].o} {' '.join([chain, *extras])}]"


def bare(block: Block, *, act: bool = False) -> bool:
    """One convolution and nothing else (but its activation, with `act`)."""
    extra = block.residual or block.gate or block.act or block.parallel
    return len(block.stages) == 1 and not extra and (act or not block.stages[0].act)


@dataclass(frozen=True)
class Upsample:
    """ConvTranspose2d 2x2 with stride 2: `weight` `C O 2 2`."""

    weight: Tensor
    bias: Tensor | None = None
    act: str = ""

    def __repr__(self) -> str:
        return f"[{self.weight.shape[0]}->{self.weight.shape[1]} transposed 2x2 {self.act}]"


@dataclass(frozen=True)
class Linear:
    """A matrix product with `O C`, on `N C`."""

    weight: Tensor
    bias: Tensor | None = None
    act: str = ""

    def __repr__(self) -> str:
        return f"[{self.weight.shape[1]}->{self.weight.shape[0]} linear {self.act}]"


@dataclass(frozen=True)
class Gated:
    """y = act(scale · (g · a + (1 - g) · b) + shift), b = conv1x1(x), g = sigmoid(mean a - mean b).

    Inputs of its node: a, mean(a), the pieces of x, the averages of the pieces. `weight`: `O C 1 1` of the 1x1.
    """

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    shift: Tensor | None = None
    act: str = ""
    pieces: int = 1
    average: bool = False

    def __repr__(self) -> str:
        return f"[{self.weight.shape[1]}->{self.weight.shape[0]} gated sum {self.act}]"


def activate(x: Tensor, act: str) -> Tensor:
    """The activations that every form of a block knows, in plain torch."""
    return ACTIVATIONS[act](x) if act else x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}  # fmt: skip
