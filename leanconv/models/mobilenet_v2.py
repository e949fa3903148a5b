"""MobileNetV2 with any operator: inverted residuals with a linear end, ReLU6, 1280 channels before the classifier.

    expansion t, channels c, blocks n, first stride s:
    1 16 1 1 | 6 24 2 2 | 6 32 3 2 | 6 64 4 2 | 6 96 3 1 | 6 160 3 2 | 6 320 1 1

3,504,872 parameters and 300,774,272 multiply-accumulates at 224×224, as torchvision's and timm's.
Source: Sandler et al. 2018, arXiv:1801.04381, table 2.
"""

from typing import Any

from torch import nn

from leanconv.models.inverted import (
    Block,
    Classifier,
    ConvNormAct,
    InvertedResidual,
    Separables,
    Strides,
    divisible,
    probability,
    reduction,
)
from leanconv.models.replaced import check_options, standard
from leanconv.nn import SqueezeExcite

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    conv: str = "conv",
    keep: str = "",
    se: int = 0,
    small_input: bool = False,
    dropout: float = 0.2,
) -> Classifier:
    """MobileNetV2: images `N in_channels H W` to logits `N num_classes`; layers "stages.I.J.expand|depthwise|project".

    Args:
        width: factor on all channels but the last 1280, which only grow.
        conv: operator string; `models.inverted` says where it stands.
        keep: glob over layer names, several parted by spaces; these stay standard.
        se: reduction of a squeeze-excite in every block, 0 for none.
        small_input: stride 1 in the first layer and in the first block that strides, for 32×32 images.
        dropout: before the classifier, while training.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """
    settings: dict[str, Any] = dict(locals())
    name = "mobilenet_v2"
    check_options(
        name, whole={"num_classes": num_classes, "in_channels": in_channels}, flags={"small_input": small_input}
    )
    place, stride = Separables(name, conv, keep), Strides(small_input)
    gate = (lambda channels: SqueezeExcite(channels, se)) if reduction(name, se) else None
    c, last = divisible(name, 32, width), divisible(name, 1280, max(1.0, width))
    first = ConvNormAct(standard(in_channels, c, 3, stride(2)), nn.BatchNorm2d(c), "relu6")
    stages: list[list[nn.Module]] = []
    for i, (t, channels, blocks, s) in enumerate(_STAGES):
        o = divisible(name, channels, width)
        stages.append([])
        for j in range(blocks):
            sizes = Block(c, t * c, o, 3, stride(s) if j == 0 else 1, "relu6", gate, expands=t > 1)
            stages[i].append(InvertedResidual(f"stages.{i}.{j}", sizes, place, nn.BatchNorm2d))
            c = o
    end = ConvNormAct(place.layer("last.conv", c, last, 1), nn.BatchNorm2d(last), "relu6")
    head = nn.Sequential(nn.Dropout(probability(name, dropout)), nn.Linear(last, num_classes))
    return Classifier(place, settings, first, stages, end, head)
