"""MobileNetV1 from any operator, for ImageNet and CIFAR.

    first 3×3 to 32, stride 2 (CIFAR: 1); thirteen blocks, depthwise 3×3 → norm → act → 1×1 → norm → act:
    64 | 128/2 128 | 256/2 256 | 512/2 512 512 512 512 512 | 1024/2 1024          (stages.0 … stages.4; /2 = stride 2)
    global average, FC

4,231,976 parameters, 568,740,352 multiply-accumulates at 224×224. Where an operator stands says `models.inverted`:
HetConv takes a depthwise layer and the 1×1 after it together, with one norm and activation behind. FuSeConv has no
activation between its branches and the 1×1, as in its authors' code.
Source: Howard et al. 2017, arXiv:1704.04861, table 1; CIFAR's form: Singh et al. 2019, arXiv:1903.04120, table 4.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from leanconv.models.inverted import Classifier, ConvNormAct, Make, Separables, divisible, probability, reduction
from leanconv.models.replaced import check_options, standard
from leanconv.nn import SqueezeExcite

_STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))  # channels, blocks, first stride


class SeparableBlock(nn.Module):
    """One block: `N C H W -> N O P Q`. `name`: where it stands. The squeeze-excite follows the first activation."""

    def __init__(self, name: str, c: int, o: int, stride: int, place: Separables, gate: Make | None) -> None:
        super().__init__()
        spatial = f"{name}.depthwise"
        both = place.pair(spatial, c, o, 3, stride)
        self.depthwise = both or place.depthwise(spatial, c, 3, stride)
        stands = place.stands_at(spatial)
        wide = o if both else 2 * c if stands and place.doubles else c
        bare = stands and place.operator.name == "fuseconv"
        self.norm1: nn.Module = nn.BatchNorm2d(wide)
        self.act1: nn.Module = nn.Identity() if bare else nn.ReLU(inplace=True)
        self.se = gate(wide) if gate else nn.Identity()
        self.project = nn.Identity() if both else place.layer(f"{name}.project", wide, o, 1)
        self.norm2: nn.Module = nn.Identity() if both else nn.BatchNorm2d(o)
        self.act2: nn.Module = nn.Identity() if both else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.act1(self.norm1(self.depthwise(x))))
        return self.act2(self.norm2(self.project(x)))  # type: ignore[no-any-return]


def mobilenet_v1(
    network: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    conv: str = "conv",
    keep: str = "",
    se: int = 0,
    se_bias: bool = False,
    dropout: float = 0.0,
) -> Classifier:
    """MobileNetV1: images `N in_channels H W` to logits `N num_classes`; layers "stages.I.J.depthwise|project".

    Args:
        network: mobilenet_v1 or mobilenet_v1_cifar.
        width: factor on all channels.
        conv: operator string; `models.inverted` says where it stands.
        keep: glob over layer names, several parted by spaces; these stay standard.
        se: reduction of a squeeze-excite in every block, 0 for none; `se_bias`: biases of its two linear maps.
        dropout: before the classifier, while training.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """
    settings: dict[str, Any] = {key: value for key, value in locals().items() if key != "network"}
    whole = {"num_classes": num_classes, "in_channels": in_channels}
    check_options(network, whole=whole, flags={"se_bias": se_bias})
    place = Separables(network, conv, keep)
    gate = (lambda channels: SqueezeExcite(channels, se, se_bias)) if reduction(network, se) else None
    c = divisible(network, 32, width)
    first_stride = 1 if network.endswith("_cifar") else 2
    first = ConvNormAct(standard(in_channels, c, 3, first_stride), nn.BatchNorm2d(c), "relu")
    stages: list[list[nn.Module]] = []
    for i, (channels, blocks, stride) in enumerate(_STAGES):
        o = divisible(network, channels, width)
        stages.append([])
        for j in range(blocks):
            stages[i].append(SeparableBlock(f"stages.{i}.{j}", c, o, stride if j == 0 else 1, place, gate))
            c = o
    head = nn.Sequential(nn.Dropout(probability(network, dropout)), nn.Linear(c, num_classes))
    return Classifier(place, settings, first, stages, nn.Identity(), head)


# Name in `leanconv.models` -> what builds it.
MOBILENETS_V1: dict[str, Callable[..., nn.Module]] = {
    "mobilenet_v1": partial(mobilenet_v1, "mobilenet_v1"),
    "mobilenet_v1_cifar": partial(mobilenet_v1, "mobilenet_v1_cifar", num_classes=10),
}
