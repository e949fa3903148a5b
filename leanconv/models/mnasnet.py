"""MnasNet-B1 with any operator: a separable block, then inverted residuals with 3×3 and 5×5 depthwise layers.

    expansion t, channels c, blocks n, first stride s, kernel k:
    separable 16 | 3 24 3 2 3 | 3 40 3 2 5 | 6 80 3 2 5 | 6 96 2 1 3 | 6 192 4 2 5 | 6 320 1 1 3 | 1×1 to 1280

4,383,312 parameters, 314,415,872 multiply-accumulates at 224×224, as torchvision's and timm's.
Source: Tan et al. 2019, arXiv:1807.11626, section 5 (B1: without squeeze-excite).
"""

from typing import Any

from torch import nn

from leanconv.models.inverted import (
    Block,
    Classifier,
    ConvNormAct,
    InvertedResidual,
    Separable,
    Separables,
    Strides,
    divisible,
    probability,
    reduction,
)
from leanconv.models.replaced import check_options, one_of, standard
from leanconv.nn import SqueezeExcite

_STAGES = ((3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5), (6, 96, 2, 1, 3), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3))


def mnasnet_b1(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    conv: str = "conv",
    keep: str = "",
    se: int = 0,
    act: str = "relu",
    small_input: bool = False,
    dropout: float = 0.2,
) -> Classifier:
    """MnasNet-B1: images `N in_channels H W` to logits `N num_classes`; "stages.0.0" is the separable block.

    Args:
        width: factor on all channels but the last 1280.
        conv: operator string; `models.inverted` says where it stands.
        keep: glob over layer names, several parted by spaces; these stay standard.
        se: reduction of a squeeze-excite in every inverted residual, 0 for none.
        act: "relu", or "relu6" (FuSeConv's counts).
        small_input: stride 1 in the first layer and in the first block that strides, for 32×32 images.
        dropout: before the classifier, while training.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """
    settings: dict[str, Any] = dict(locals())
    name = "mnasnet_b1"
    check_options(
        name, whole={"num_classes": num_classes, "in_channels": in_channels}, flags={"small_input": small_input}
    )
    one_of(name, "act", act, ["relu", "relu6"])
    place, stride = Separables(name, conv, keep), Strides(small_input)
    gate = (lambda channels: SqueezeExcite(channels, se)) if reduction(name, se) else None
    start, c = divisible(name, 32, width), divisible(name, 16, width)
    first = ConvNormAct(standard(in_channels, start, 3, stride(2)), nn.BatchNorm2d(start), act)
    stages: list[list[nn.Module]] = [[Separable("stages.0.0", start, c, act, place, nn.BatchNorm2d)]]
    for i, (t, channels, blocks, s, kernel) in enumerate(_STAGES, 1):
        o = divisible(name, channels, width)
        stages.append([])
        for j in range(blocks):
            sizes = Block(c, t * c, o, kernel, stride(s) if j == 0 else 1, act, gate)
            stages[i].append(InvertedResidual(f"stages.{i}.{j}", sizes, place, nn.BatchNorm2d))
            c = o
    end = ConvNormAct(place.layer("last.conv", c, 1280, 1), nn.BatchNorm2d(1280), act)
    head = nn.Sequential(nn.Dropout(probability(name, dropout)), nn.Linear(1280, num_classes))
    return Classifier(place, settings, first, stages, end, head)
