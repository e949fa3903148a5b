"""VGG-16 with CIFAR's head or ImageNet's, and any operator in every convolution but the first.

    stage1 … stage5   2, 2, 3, 3, 3 times: conv 3×3, norm, act, [se]; then a 2×2 max-pool; 64, 128, 256, 512, 512 wide
    head, CIFAR       global average, fc1 512 → 512, norm, act, fc2 → num_classes
    head, ImageNet    7×7 average, fc1 25088 → 4096, act, drop, fc2 4096 → 4096, act, drop, fc3 → num_classes

The CIFAR network is the one that the HetConv paper counts: 15,001,418 numbers with the running statistics. The ImageNet
one is torchvision's `vgg16_bn`, its layers by other names.
Source: Simonyan, Zisserman 2014, arXiv:1409.1556, configuration D; with BatchNorm. Squeeze-excite: Hu et al. 2018,
arXiv:1709.01507, after each activation (the HetConv paper's `_SE` rows).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.models.replaced import Replaced, check_options, checked_image, scaled, standard
from leanconv.nn import SqueezeExcite

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
_LEAST = 2 ** len(_STAGES)  # pixels: every stage halves


class VGG(nn.Module):
    """Images `N C H W` to logits `N num_classes`; H and W of 32 and more.

    Args:
        network: vgg16 or vgg16_cifar.
        num_classes, in_channels: logits, and channels of the image.
        width: factor on every width, the head's included; see `replaced.scaled`.
        conv: operator string of the replaced convolutions; "conv" is the standard network.
        keep: glob over the layers ("stage1.conv2"), which stay standard; the first always does.
        se: reduction of a squeeze-excite after each of the 13 convolutions, 0 for none; `se_bias`: its biases.
        conv_bias: biases of the convolutions.
        dropout: in the head, while training.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """

    def __init__(
        self,
        network: str,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: float = 1.0,
        conv: str = "conv",
        keep: str = "",
        *,
        se: int = 0,
        se_bias: bool = False,
        conv_bias: bool = True,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        whole = {"num_classes": num_classes, "in_channels": in_channels, **({"se": se} if se != 0 else {})}
        check_options(network, whole=whole, flags={"se_bias": se_bias, "conv_bias": conv_bias})
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise BadInput(f"{network}: dropout={dropout!r}: a share from 0 to below 1")
        self.network, self.num_classes, self.in_channels, self.width = network, num_classes, in_channels, width
        self.conv, self.keep, self.se, self.se_bias = conv, keep, se, se_bias
        self.conv_bias, self.dropout = conv_bias, dropout
        self._build = Replaced(network, conv, keep)
        c = in_channels
        for i, (channels, count) in enumerate(_STAGES):
            o = scaled(network, channels, width)
            self.add_module(f"stage{i + 1}", self._stage(f"stage{i + 1}", c, o, count))
            c = o
        self.head = self._cifar_head(c) if network.endswith("_cifar") else self._imagenet_head(c)
        self._build.finish()
        del self._build
        for layer in self.head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N num_classes
        x = checked_image(self.network, x, self.in_channels, least=_LEAST)
        for i in range(len(_STAGES)):
            x = getattr(self, f"stage{i + 1}")(x)
        return self.head(x)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        options = (
            "network", "num_classes", "in_channels", "width", "conv", "keep", "se", "se_bias", "conv_bias", "dropout",
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in options)

    def _stage(self, name: str, c: int, o: int, count: int) -> nn.Sequential:
        stage = nn.Sequential()
        for j in range(1, count + 1):
            if (name, j) == ("stage1", 1):
                stage.conv1 = standard(c, o, 3, bias=self.conv_bias)
            else:
                stage.add_module(f"conv{j}", self._build.layer(f"{name}.conv{j}", c, o, 3, bias=self.conv_bias))
            stage.add_module(f"norm{j}", nn.BatchNorm2d(o))
            stage.add_module(f"act{j}", nn.ReLU(inplace=True))
            if self.se:
                stage.add_module(f"se{j}", SqueezeExcite(o, self.se, self.se_bias))
            c = o
        stage.pool = nn.MaxPool2d(2)
        return stage

    def _cifar_head(self, c: int) -> nn.Sequential:
        head, hidden = nn.Sequential(), scaled(self.network, 512, self.width)
        head.pool, head.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        head.fc1, head.norm1, head.act1 = nn.Linear(c, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)
        head.drop1, head.fc2 = nn.Dropout(self.dropout), nn.Linear(hidden, self.num_classes)
        return head

    def _imagenet_head(self, c: int) -> nn.Sequential:
        head, hidden = nn.Sequential(), scaled(self.network, 4096, self.width)
        head.pool, head.flatten = nn.AdaptiveAvgPool2d(7), nn.Flatten()
        head.fc1, head.act1, head.drop1 = nn.Linear(49 * c, hidden), nn.ReLU(inplace=True), nn.Dropout(self.dropout)
        head.fc2, head.act2, head.drop2 = nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Dropout(self.dropout)
        head.fc3 = nn.Linear(hidden, self.num_classes)
        return head


# Name in `leanconv.models` -> what builds it.
VGGS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": partial(VGG, "vgg16"),
    "vgg16_cifar": partial(VGG, "vgg16_cifar", num_classes=10, dropout=0.0),
}
