"""U-Net with any operator as its 3×3 convolution: the network of the SPLConv paper's tables.

Width `base·2^i` at 1/2^i of the input's size, i = 0 … `levels`:

    encoder.level1 … level(L+1)   [2×2 max-pool, from level2 on,] conv1, norm1, act1, conv2, norm2, act2
    decoder.level(L) … level1     up (2×2 transposed, stride 2), concatenation with the encoder's map, the same pair
    head                          1×1 with bias

3×3 convolutions have padding 1 and no bias; with base 32, 3 inputs and 1 output these are the 7,763,041 parameters of
the widely used brain-segmentation U-Net.
Source: Ronneberger et al. 2015, arXiv:1505.04597, padded and with BatchNorm.
"""

from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput, UnsupportedConv
from leanconv.nn import make
from leanconv.nn.base import kaiming_fan_out_
from leanconv.ops.fx import leaf_function
from leanconv.registry import nearest, parse

_WIDEST = 2**16  # channels; wider is a slip of the pen, and a 3×3 layer of that width alone takes 155 GB


class ConvPair(nn.Module):
    """Two 3×3 convolutions, each with BatchNorm and ReLU unless `norm1=False`. `N C H W -> N O H W`."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, channels: int, *, norm1: bool = True) -> None:
        super().__init__()
        self.conv1 = conv1
        self.norm1: nn.Module = nn.BatchNorm2d(channels) if norm1 else nn.Identity()
        self.act1: nn.Module = nn.ReLU(inplace=True) if norm1 else nn.Identity()
        self.conv2 = conv2
        self.norm2: nn.Module = nn.BatchNorm2d(channels)
        self.act2: nn.Module = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, *skip: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(self._input(x, *skip))))
        return self.act2(self.norm2(self.conv2(x)))  # type: ignore[no-any-return]

    def _input(self, x: Tensor) -> Tensor:
        """What the first convolution reads."""
        return x


class Down(ConvPair):
    """One encoder level below the first: 2×2 max-pool, then the pair. `N C H W -> N O H/2 W/2`."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, channels: int, *, norm1: bool = True) -> None:
        super().__init__(conv1, conv2, channels, norm1=norm1)
        self.pool = nn.MaxPool2d(2)

    def _input(self, x: Tensor) -> Tensor:
        return self.pool(x)  # type: ignore[no-any-return]


class Up(ConvPair):
    """One decoder level: transposed convolution, concatenation with the encoder's map, the pair.

    `N 2C H/2 W/2` and the encoder's `N C H W -> N C H W`.
    """

    def __init__(self, conv1: nn.Module, conv2: nn.Module, channels: int, *, norm1: bool = True) -> None:
        super().__init__(conv1, conv2, channels, norm1=norm1)
        self.up = nn.ConvTranspose2d(2 * channels, channels, 2, 2)

    def _input(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return torch.cat([self.up(x), skip], 1)  # N 2C H/2 W/2, N C H W -> N 2C H W


class UNet(nn.Module):
    """U-Net: images `N C H W` to logits `N out_channels H W`; H and W are multiples of `size_multiple` = 2^levels.

    Args:
        in_channels, out_channels: channels of the image, and logits per pixel (1 for one kind of defect).
        base: width of the first level; it doubles at each of the `levels` poolings.
        conv: operator string of the replaced 3×3 convolutions; "conv" is the dense U-Net, plain `nn.Conv2d` everywhere.
        part: which convolutions are replaced: "all", "encoder" (with the bottleneck) or "decoder".
        keep: which of those stay standard: "ends" = the encoder's first and the decoder's last 3×3 (the paper's text);
            "first_block" = both convolutions of the first encoder level (the paper's table).
        conv_bias: give the replaced convolutions a bias (SPConv, SPLConv: on the plain 1×1, as in the public code).
        norm_per: "conv" = BatchNorm and ReLU after every convolution (a plain drop-in); "pair" = a replaced `conv1`
            goes without, so that one BatchNorm and ReLU follow each pair (the paper's table); "inner" = no replaced
            convolution has any but what stands inside the operator.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        base: int = 32,
        levels: int = 4,
        conv: str = "conv",
        part: str = "all",
        keep: str = "ends",
        *,
        conv_bias: bool = False,
        norm_per: str = "conv",
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "base": base, "levels": levels}
        for name, value in sizes.items():
            _whole(name, value)
        for name, value in {"base·2^levels": base * 2 ** min(levels, 99), **sizes}.items():
            if value > _WIDEST:
                raise BadInput(f"unet: {name}={value}: at most {_WIDEST} channels")
        _one_of("part", part, ["all", "encoder", "decoder"])
        _one_of("keep", keep, ["ends", "first_block"])
        _one_of("norm_per", norm_per, ["conv", "pair", "inner"])
        if not isinstance(conv_bias, bool):
            raise BadInput(f"unet: conv_bias={conv_bias!r}: True or False")
        if not isinstance(conv, str):
            raise BadInput(f"unet: conv={conv!r}: an operator string, like splconv(alpha=0.5)")
        parse(conv)
        self.in_channels, self.out_channels, self.base, self.levels = in_channels, out_channels, base, levels
        self.conv, self.part, self.keep, self.conv_bias, self.norm_per = conv, part, keep, conv_bias, norm_per
        self.size_multiple = 2**levels
        widths = [base * 2**i for i in range(levels + 1)]
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        for i, (before, width) in enumerate(zip([in_channels, *widths], widths)):
            self.encoder[f"level{i + 1}"] = self._pair(
                ConvPair if i == 0 else Down, f"encoder.level{i + 1}", before, width
            )
        for i in reversed(range(levels)):
            self.decoder[f"level{i + 1}"] = self._pair(Up, f"decoder.level{i + 1}", 2 * widths[i], widths[i])
        self.head = nn.Conv2d(base, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N out H W
        x = _checked(x, self.in_channels, self.levels)
        skips: list[Tensor] = []
        for level in self.encoder.values():
            x = level(x)
            skips.append(x)
        skips.pop()
        for level in self.decoder.values():
            x = level(x, skips.pop())
        return self.head(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        options = ("in_channels", "out_channels", "base", "levels", "conv", "part", "keep", "conv_bias", "norm_per")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)

    def is_replaced(self, name: str) -> bool:
        """Whether `conv`, not the standard convolution, stands at a 3×3 layer ("encoder.level2.conv1")."""
        room = name.split(".")[0]
        if self.part not in ("all", room):
            return False
        kept = {
            "ends": ("encoder.level1.conv1", "decoder.level1.conv2"),
            "first_block": ("encoder.level1.conv1", "encoder.level1.conv2"),
        }[self.keep]
        return name not in kept

    def _pair(self, kind: type[ConvPair], name: str, before: int, width: int) -> ConvPair:
        bare = self.norm_per != "conv" and self.is_replaced(f"{name}.conv1")
        pair = kind(
            self._conv(f"{name}.conv1", before, width), self._conv(f"{name}.conv2", width, width), width, norm1=not bare
        )
        if self.norm_per == "inner" and self.is_replaced(f"{name}.conv2"):
            pair.norm2, pair.act2 = nn.Identity(), nn.Identity()
        return pair

    def _conv(self, name: str, before: int, width: int) -> nn.Module:
        replaced = self.is_replaced(name)
        bias = self.conv_bias and replaced
        if not replaced or self.conv in ("conv", "conv()"):
            plain = nn.Conv2d(before, width, 3, padding=1, bias=bias)
            kaiming_fan_out_(plain)
            return plain
        try:
            return make(self.conv, before, width, 3, padding=1, bias=bias)
        except UnsupportedConv as error:
            raise UnsupportedConv(f"unet, {name} ({before}->{width}): {error}") from error


unet = UNet


@leaf_function
def _checked(x: Tensor, channels: int, levels: int) -> Tensor:
    """`x`, if it is `N C H W` of these channels and of sizes that halve `levels` times. Raises BadInput."""
    if torch.jit.is_tracing():  # a trace would turn the sizes it compares into constants, and warn
        return x
    if x.dim() != 4 or x.shape[1] != channels:
        raise BadInput(f"unet takes N C H W with C={channels}, got {tuple(x.shape)}")
    m, (h, w) = 2**levels, x.shape[-2:]
    if h % m or w % m:
        raise BadInput(
            f"unet with levels={levels} takes H and W that are multiples of {m}, got {h}x{w}; "
            f"pad to {-(-h // m) * m}x{-(-w // m) * m}"
        )
    return x


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"unet: {name}={value!r}: a whole number of at least 1")


def _one_of(name: str, value: Any, known: list[str]) -> None:
    if value not in known:
        raise BadInput(f"unet: {name}={value!r}{nearest(str(value), known)}: one of {', '.join(known)}")
