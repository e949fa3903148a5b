"""ResNets for ImageNet and CIFAR with any operator in their residual branches.

    stem      conv1 7×7/2, bn1, relu, 3×3/2 max-pool (ImageNet); conv1 3×3 (CIFAR); always standard
    layer1…   blocks: basic = conv1 3×3, conv2 3×3; bottleneck = conv1 1×1, conv2 3×3, conv3 1×1; [se]; + shortcut; relu
    fc        after the global average

Replaced are the convolutions of the residual branches whose kind the operator replaces (as in `plan`): HetConv's 3×3,
ODConv's 3×3 and 1×1. Stem, projection shortcuts and fc stay standard. The keys of the state are torchvision's, so the
standard networks load its weights.
Source: He et al. 2015, arXiv:1512.03385; stride on the bottleneck's 3×3 as in torchvision. Squeeze-excite stands on the
residual branch before the addition, as in Hu et al. 2018, arXiv:1709.01507.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.models.replaced import Replaced, check_options, checked_image, one_of, scaled, standard
from leanconv.nn import SqueezeExcite

# Blocks per stage, block, CIFAR's stem and widths.
_NETWORKS: dict[str, tuple[tuple[int, ...], str, bool]] = {
    "resnet20_cifar": ((3, 3, 3), "basic", True),
    "resnet56_cifar": ((9, 9, 9), "basic", True),
    "resnet18": ((2, 2, 2, 2), "basic", False),
    "resnet34": ((3, 4, 6, 3), "basic", False),
    "resnet50": ((3, 4, 6, 3), "bottleneck", False),
    "resnet101": ((3, 4, 23, 3), "bottleneck", False),
}


class ZeroPadShortcut(nn.Module):
    """Option A: every stride-th pixel, zeros for the channels that are new. No parameters. `N C H W -> N O P Q`."""

    def __init__(self, c: int, o: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = o - c, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))

    def extra_repr(self) -> str:
        return f"{self.more} more channels, stride={self.stride}"


class BasicBlock(nn.Module):
    """conv1, bn1, relu1, conv2, bn2, [se], + shortcut, relu2. `N C H W -> N O P Q`."""

    def __init__(self, conv1: nn.Module, conv2: nn.Module, o: int, se: nn.Module, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv1, nn.BatchNorm2d(o), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv2, nn.BatchNorm2d(o)
        self.se, self.downsample, self.relu2 = se, downsample, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        return self.relu2(y + self.downsample(x))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """conv1 (1×1), conv2 (3×3), conv3 (1×1), each with BatchNorm; [se]; + shortcut; relu3. `N C H W -> N O P Q`."""

    def __init__(self, convs: list[nn.Module], mid: int, o: int, se: nn.Module, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = convs
        self.bn1, self.relu1 = nn.BatchNorm2d(mid), nn.ReLU(inplace=True)
        self.bn2, self.relu2 = nn.BatchNorm2d(mid), nn.ReLU(inplace=True)
        self.bn3 = nn.BatchNorm2d(o)
        self.se, self.downsample, self.relu3 = se, downsample, nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.se(self.bn3(self.conv3(y)))
        return self.relu3(y + self.downsample(x))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Images `N C H W` to logits `N num_classes`; any H and W (designed for 224×224, the CIFAR ones for 32×32).

    Args:
        network: resnet18, resnet34, resnet50, resnet101, resnet20_cifar or resnet56_cifar.
        num_classes, in_channels: logits, and channels of the image.
        width: factor on every width, see `replaced.scaled`.
        conv: operator string of the replaced convolutions; "conv" is the standard network.
        replace: "all" convolutions of the residual branches that the operator may stand for, or their "3x3" alone.
        keep: glob over the names of those ("layer2.*"), which stay standard.
        shortcut: "projection" (a 1×1 where the sizes change) or "zero_pad" (option A, no parameters); None: what the
            network's paper has, zero_pad for CIFAR.
        stride_on: the convolution that strides in a bottleneck. "3x3": torchvision, the HetConv and SPConv papers'
            counts. "1x1" (its first one): He et al., ODConv's.
        se: reduction of a squeeze-excite in every block, 0 for none; `se_bias`: biases of its two linear maps.
        conv_bias: biases of the stem and of the residual branches: the HetConv paper's counts have them. "3x3": those
            of the branches' 3×3 alone (SPConv's).
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """

    def __init__(
        self,
        network: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        conv: str = "conv",
        replace: str = "all",
        keep: str = "",
        *,
        shortcut: str | None = None,
        stride_on: str = "3x3",
        se: int = 0,
        se_bias: bool = False,
        conv_bias: bool | str = False,
    ) -> None:
        super().__init__()
        blocks, kind, cifar = _NETWORKS[network]
        shortcut = ("zero_pad" if cifar else "projection") if shortcut is None else shortcut
        whole = {"num_classes": num_classes, "in_channels": in_channels, **({"se": se} if se != 0 else {})}
        check_options(network, whole=whole, flags={"se_bias": se_bias})
        one_of(network, "replace", replace, ["all", "3x3"])
        one_of(network, "shortcut", shortcut, ["projection", "zero_pad"])
        one_of(network, "stride_on", stride_on, ["3x3", "1x1"])
        if not isinstance(conv_bias, bool) and conv_bias != "3x3":
            raise BadInput(f"{network}: conv_bias={conv_bias!r}: True or False, or '3x3'")
        self.network, self.num_classes, self.in_channels, self.width = network, num_classes, in_channels, width
        self.conv, self.replace, self.keep, self.shortcut, self.stride_on = conv, replace, keep, shortcut, stride_on
        self.se, self.se_bias, self.conv_bias = se, se_bias, conv_bias
        self._build = Replaced(network, conv, keep)
        c = scaled(network, 16 if cifar else 64, width)
        self.conv1 = standard(in_channels, c, 3 if cifar else 7, 1 if cifar else 2, bias=conv_bias is True)
        self.bn1, self.relu = nn.BatchNorm2d(c), nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.Identity() if cifar else nn.MaxPool2d(3, 2, 1)
        self.stages: list[str] = []
        for i, count in enumerate(blocks):
            mid = scaled(network, (16 if cifar else 64) * 2**i, width)
            o, stage = mid * (4 if kind == "bottleneck" else 1), nn.Sequential()
            for j in range(count):
                stage.append(self._block(f"layer{i + 1}.{j}", kind, c, mid, o, 2 if i > 0 and j == 0 else 1))
                c = o
            self.add_module(f"layer{i + 1}", stage)
            self.stages.append(f"layer{i + 1}")
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(c, num_classes)
        self._build.finish()
        del self._build

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N num_classes
        x = checked_image(self.network, x, self.in_channels)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        options = (
            "network", "num_classes", "in_channels", "width", "conv", "replace", "keep", "shortcut", "stride_on", "se",
            "se_bias", "conv_bias",
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)

    def _block(self, name: str, kind: str, c: int, mid: int, o: int, stride: int) -> nn.Module:
        se: nn.Module = SqueezeExcite(o, self.se, self.se_bias) if self.se else nn.Identity()
        downsample = self._downsample(c, o, stride)

        def conv(i: int, c: int, o: int, kernel: int, stride: int) -> nn.Module:
            bias = self.conv_bias is True or (self.conv_bias == "3x3" and kernel == 3)
            if kernel == 1 and self.replace == "3x3":
                return standard(c, o, 1, stride, bias=bias)
            return self._build.layer(f"{name}.conv{i}", c, o, kernel, stride, bias=bias)

        if kind == "basic":
            return BasicBlock(conv(1, c, o, 3, stride), conv(2, o, o, 3, 1), o, se, downsample)
        first, second = (stride, 1) if self.stride_on == "1x1" else (1, stride)
        convs = [conv(1, c, mid, 1, first), conv(2, mid, mid, 3, second), conv(3, mid, o, 1, 1)]
        return Bottleneck(convs, mid, o, se, downsample)

    def _downsample(self, c: int, o: int, stride: int) -> nn.Module:
        if c == o and stride == 1:
            return nn.Identity()
        if self.shortcut == "zero_pad":
            return ZeroPadShortcut(c, o, stride)
        return nn.Sequential(standard(c, o, 1, stride), nn.BatchNorm2d(o))


def _network(name: str) -> Callable[..., nn.Module]:
    options: dict[str, Any] = {"num_classes": 10} if name.endswith("_cifar") else {}
    return partial(ResNet, name, **options)


# Name in `leanconv.models` -> what builds it.
RESNETS: dict[str, Callable[..., nn.Module]] = {name: _network(name) for name in _NETWORKS}
