"""ConvSpec: the sizes of one convolution and of its input."""

from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


def pair(value: int | tuple[int, ...] | list[int]) -> tuple[int, int]:
    """Turn `3` or `(3, 3)` into `(3, 3)`, as `nn.Conv2d` does."""
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise BadInput(f"a 2-D size is one number or two, got {tuple(value)}")
    return int(value[0]), int(value[1])


@dataclass(frozen=True)
class ConvSpec:
    """One `nn.Conv2d` and its `N C H W` input. `padding` is a pair, or "same" if the two sides differ."""

    c: int
    o: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    padding_mode: PaddingMode = "zeros"
    n: int = 1
    h: int = 1
    w: int = 1

    @classmethod
    def of(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        n: int = 1,
        h: int = 1,
        w: int = 1,
    ) -> Self:
        """Build a spec from `nn.Conv2d`'s arguments: numbers or pairs, including "same" and "valid"."""
        kernel, stride, dilation = pair(kernel_size), pair(stride), pair(dilation)
        for what, values in {"kernel_size": kernel, "stride": stride, "dilation": dilation}.items():
            if min(values) < 1:
                raise BadInput(f"{what}={values}: must be at least 1")
        if in_channels < 1 or out_channels < 1 or groups < 1:
            raise BadInput(f"channels and groups must be at least 1, got {in_channels}, {out_channels}, {groups}")
        if in_channels % groups or out_channels % groups:
            raise BadInput(f"groups={groups} must divide in_channels={in_channels} and out_channels={out_channels}")
        if padding == "valid":
            padding = (0, 0)
        elif padding == "same":
            if stride != (1, 1):
                raise BadInput(f"padding='same' needs stride=1, got {stride}; type padding={centred(kernel, dilation)}")
            if centred(kernel, dilation) is not None:
                padding = centred(kernel, dilation)
        elif isinstance(padding, str):
            raise BadInput(f"padding={padding!r}: a number, a pair, 'same' or 'valid'")
        else:
            padding = pair(padding)
            if min(padding) < 0:
                raise BadInput(f"padding={padding}: must be at least 0")
        if padding_mode not in ("zeros", "reflect", "replicate", "circular"):
            raise BadInput(f"padding_mode={padding_mode!r}: one of zeros, reflect, replicate, circular")
        return cls(
            in_channels,
            out_channels,
            kernel,
            stride,
            padding,
            dilation,
            groups,
            bool(bias),
            cast(PaddingMode, padding_mode),
            n,
            h,
            w,
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, input_shape: torch.Size | tuple[int, ...] | None = None) -> Self:
        """Build the spec of a layer and its `N C H W` (or `C H W`) input."""
        n, h, w = 1, 1, 1
        if input_shape is not None:
            n, (h, w) = (1 if len(input_shape) == 3 else input_shape[0]), input_shape[-2:]
        return cls.of(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            conv.padding_mode,
            n=n,
            h=h,
            w=w,
        )

    @property
    def p(self) -> int:
        """Output height."""
        return self._side(0, self.h)

    @property
    def q(self) -> int:
        """Output width."""
        return self._side(1, self.w)

    def _side(self, axis: int, size: int) -> int:
        kernel, stride, dilation = self.kernel[axis], self.stride[axis], self.dilation[axis]
        total = dilation * (kernel - 1) if self.padding == "same" else 2 * int(self.padding[axis])
        length: int = out_length(size, kernel, stride, dilation, total)
        return max(0, length)

    @property
    def is_dense(self) -> bool:
        """groups = 1 and a kernel of more than one tap."""
        return self.groups == 1 and max(self.kernel) > 1

    @property
    def is_depthwise(self) -> bool:
        """groups = C = O, more than one channel and more than one tap."""
        return self.groups == self.c == self.o and self.c > 1 and max(self.kernel) > 1

    @property
    def is_pointwise(self) -> bool:
        """groups = 1 and a 1×1 kernel."""
        return self.groups == 1 and self.kernel == (1, 1)

    @property
    def kind(self) -> str:
        """The layer's kind, as in `Operator.replaces`: dense, depthwise, pointwise, grouped."""
        return {self.is_dense: "dense", self.is_depthwise: "depthwise", self.is_pointwise: "pointwise"}.get(
            True, "grouped"
        )

    def arguments(self) -> dict[str, Any]:
        """`nn.Conv2d`'s keyword arguments."""
        return {
            "in_channels": self.c,
            "out_channels": self.o,
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias,
            "padding_mode": self.padding_mode,
        }

    def conv(self, **factory: Any) -> nn.Conv2d:
        """Build the plain layer of these sizes. `device` and `dtype` are passed on."""
        return nn.Conv2d(**self.arguments(), **factory)

    def input(self, **factory: Any) -> Tensor:
        """Return a random `N C H W` input of that layer."""
        return torch.randn(self.n, self.c, self.h, self.w, **factory)

    def __str__(self) -> str:
        text = f"{self.c}->{self.o} {self.kernel[0]}x{self.kernel[1]}"
        for name, value, default in (
            ("s", self.stride, (1, 1)),
            ("p", self.padding, (0, 0)),
            ("d", self.dilation, (1, 1)),
            ("g", self.groups, 1),
        ):
            if value != default:
                text += f" {name}{value if not isinstance(value, tuple) or len(set(value)) > 1 else value[0]}"
        return text


def out_length(size: Any, kernel: int, stride: int, dilation: int, padding: int) -> Any:
    """The length of a convolution's output along one axis: ⌊(size + padding - d·(k - 1) - 1) / stride⌋ + 1.

    Args:
        size: a number, torch's symbolic size, or an expression of Halide's.
        padding: the sum of both sides.
    """
    return (size + (padding - dilation * (kernel - 1) - 1)) // stride + 1


def centred(kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> tuple[int, int] | None:
    """Return the padding d·(k - 1)/2 that keeps the kernel's centre on the pixel, or None if d·(k - 1) is odd."""
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return None if any(t % 2 for t in totals) else (totals[0] // 2, totals[1] // 2)
