"""MobileNetV3, Small and Large, with any operator: inverted residuals with squeeze-excite and h-swish.

2,542,856 parameters and 56,510,400 multiply-accumulates (Small), 5,483,032 and 216,589,760 (Large) at 224×224, as
torchvision's. XSepConv replaces the 5×5 depthwise layers of the stride-1 blocks, as its paper does in Small.
Source: Howard et al. 2019, arXiv:1905.02244, tables 1 and 2; the squeeze-excite's widths as in torchvision.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from leanconv.errors import BadInput
from leanconv.models.inverted import (
    Block,
    Classifier,
    ConvNormAct,
    InvertedResidual,
    Make,
    Separables,
    Strides,
    divisible,
    probability,
    reduction,
)
from leanconv.models.replaced import check_options, standard
from leanconv.nn import SqueezeExcite

# Kernel, expanded channels, output channels, squeeze-excite, activation, stride; then the last two widths.
_Row = tuple[int, int, int, bool, str, int]
_SMALL: tuple[_Row, ...] = (
    (3, 16, 16, True, "relu", 2), (3, 72, 24, False, "relu", 2), (3, 88, 24, False, "relu", 1),
    (5, 96, 40, True, "hardswish", 2), (5, 240, 40, True, "hardswish", 1), (5, 240, 40, True, "hardswish", 1),
    (5, 120, 48, True, "hardswish", 1), (5, 144, 48, True, "hardswish", 1), (5, 288, 96, True, "hardswish", 2),
    (5, 576, 96, True, "hardswish", 1), (5, 576, 96, True, "hardswish", 1),
)  # fmt: skip
_LARGE: tuple[_Row, ...] = (
    (3, 16, 16, False, "relu", 1), (3, 64, 24, False, "relu", 2), (3, 72, 24, False, "relu", 1),
    (5, 72, 40, True, "relu", 2), (5, 120, 40, True, "relu", 1), (5, 120, 40, True, "relu", 1),
    (3, 240, 80, False, "hardswish", 2), (3, 200, 80, False, "hardswish", 1), (3, 184, 80, False, "hardswish", 1),
    (3, 184, 80, False, "hardswish", 1), (3, 480, 112, True, "hardswish", 1), (3, 672, 112, True, "hardswish", 1),
    (5, 672, 160, True, "hardswish", 2), (5, 960, 160, True, "hardswish", 1), (5, 960, 160, True, "hardswish", 1),
)  # fmt: skip
_SIZES: dict[str, tuple[tuple[_Row, ...], int]] = {
    "mobilenet_v3_small": (_SMALL, 1024),
    "mobilenet_v3_large": (_LARGE, 1280),
}


def mobilenet_v3(
    name: str,
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    conv: str = "conv",
    keep: str = "",
    se: int = 4,
    se_multiple: int = 8,
    se_bias: bool = True,
    last: int = 0,
    expand_always: bool = False,
    small_input: bool = False,
    dropout: float = 0.2,
) -> Classifier:
    """MobileNetV3: images `N in_channels H W` to logits `N num_classes`; block i is "stages.0.I".

    Args:
        name: mobilenet_v3_small or mobilenet_v3_large.
        width: factor on all channels.
        conv: operator string; `models.inverted` says where it stands.
        keep: glob over layer names, several parted by spaces; these stay standard.
        se: the squeeze-excites' reduction, 0 for none anywhere; their widths are rounded to `se_multiple` (1: not at
            all, as in FuSeConv's and XSepConv's counts); `se_bias`: biases of their two linear maps.
        last: width before the classifier; 0 for the paper's 1024 (Small) or 1280 (Large).
        expand_always: the expanding 1×1 also where it widens nothing, as FuSeConv's code has it.
        small_input: stride 1 in the first layer and in the first block that strides, for 32×32 images.
        dropout: before the classifier, while training.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """
    settings: dict[str, Any] = {key: value for key, value in locals().items() if key != "name"}
    whole = {"num_classes": num_classes, "in_channels": in_channels, "se_multiple": se_multiple}
    flags = {"se_bias": se_bias, "expand_always": expand_always, "small_input": small_input}
    check_options(name, whole=whole, flags=flags)
    place, stride, norm = Separables(name, conv, keep), Strides(small_input), partial(nn.BatchNorm2d, eps=1e-3)
    rows, paper_last = _SIZES[name]
    last = last if _last(name, last) else divisible(name, paper_last, max(1.0, width))
    gate = _gate(name, se, se_multiple, se_bias)
    c = divisible(name, 16, width)
    first = ConvNormAct(standard(in_channels, c, 3, stride(2)), norm(c), "hardswish")
    blocks: list[nn.Module] = []
    for i, (kernel, expanded, channels, squeezed, act, s) in enumerate(rows):
        inner, o = divisible(name, expanded, width), divisible(name, channels, width)
        expands = expand_always or inner != c
        sizes = Block(c, inner, o, kernel, stride(s), act, gate if squeezed else None, expands)
        blocks.append(InvertedResidual(f"stages.0.{i}", sizes, place, norm))
        c = o
    end = ConvNormAct(place.layer("last.conv", c, 6 * c, 1), norm(6 * c), "hardswish")
    head = nn.Sequential(
        nn.Linear(6 * c, last),
        nn.Hardswish(inplace=True),
        nn.Dropout(probability(name, dropout)),
        nn.Linear(last, num_classes),
    )
    return Classifier(place, settings, first, [blocks], end, head)


def _gate(name: str, se: Any, multiple: int, bias: bool) -> Make | None:
    if not reduction(name, se):
        return None

    def gate(channels: int) -> nn.Module:
        hidden = divisible(name, channels // se, 1, multiple)
        return SqueezeExcite(channels, se, bias, "hardsigmoid", hidden=hidden)

    return gate


def _last(name: str, last: Any) -> bool:
    if isinstance(last, bool) or not isinstance(last, int) or not 0 <= last <= 2**16:
        raise BadInput(f"{name}: last={last!r}: a width, or 0 for the paper's")
    return last > 0


# Name in `leanconv.models` -> what builds it.
MOBILENETS_V3: dict[str, Callable[..., Classifier]] = {name: partial(mobilenet_v3, name) for name in _SIZES}
