"""ShuffleNetV2 with any operator, DRConv's placement among them.

    first 3×3/2, 3×3/2 max-pool | units: 4, 8, 4, the first of each with stride 2 | last 1×1 | average, classifier
    unit, stride 1    (a, b) = the two halves of x;       y = shuffle(cat(a, branch(b)))
    unit, stride 2    y = shuffle(cat(norm-relu(PW(norm(DW(x)))), branch(x)))
    branch            PW → norm → relu → DW 3×3 → norm → PW → norm → relu [→ squeeze-excite]

DRConv replaces the two 1×1 layers of every unit's branch; they share one guide, a 1×1 without bias on the branch's
input (its released code). Other operators stand where `models.inverted` says. The dense 0.5x network has 1,366,792
parameters and 40,476,448 multiply-accumulates at 224×224, as torchvision's.
Source: Ma et al. 2018, arXiv:1807.11164, table 5; Chen et al. 2021, arXiv:2003.12243, section 4.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.models.inverted import Classifier, ConvNormAct, Separables, Strides, probability, reduction
from leanconv.models.replaced import check_options, standard
from leanconv.nn import SqueezeExcite

_WIDTHS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (244, 488, 976, 2048)}
_UNITS = (4, 8, 4)


class Branch(nn.Module):
    """The branch with the two 1×1 layers; `guide` gives both DRConvs their logits. `N C H W -> N O P Q`."""

    def __init__(self, name: str, c: int, o: int, stride: int, place: Separables, se: int) -> None:
        super().__init__()
        shared = place.operator.name == "drconv" and "guide" not in place.options
        more: dict[str, Any] = {"guide": None} if shared else {}
        self.pointwise1 = place.layer(f"{name}.pointwise1", c, o, 1, options=more)
        self.norm1, self.act1 = nn.BatchNorm2d(o), nn.ReLU(inplace=True)
        both = place.pair(f"{name}.depthwise", o, o, 3, stride)
        self.depthwise = both or place.depthwise(f"{name}.depthwise", o, 3, stride)
        wide = 2 * o if place.doubles and place.stands_at(f"{name}.depthwise") else o
        self.norm2 = nn.Identity() if both else nn.BatchNorm2d(wide)
        self.pointwise2 = nn.Identity() if both else place.layer(f"{name}.pointwise2", wide, o, 1, options=more)
        self.norm3, self.act3 = nn.BatchNorm2d(o), nn.ReLU(inplace=True)
        self.se: nn.Module = SqueezeExcite(o, se) if se else nn.Identity()
        self.guided = tuple(shared and place.stands_at(f"{name}.pointwise{i}") for i in (1, 2))
        self.guide = standard(c, place.options.get("regions", 8), 1) if any(self.guided) else None

    def forward(self, x: Tensor) -> Tensor:
        logits = () if self.guide is None else (self.guide(x),)
        first, second = (logits if guided else () for guided in self.guided)
        z = self.act1(self.norm1(self.pointwise1(x, *first)))
        z = self.norm2(self.depthwise(z))
        return self.se(self.act3(self.norm3(self.pointwise2(z, *second))))  # type: ignore[no-any-return]


class Unit(nn.Module):
    """One unit: `N C H W -> N O P Q`, C = O with stride 1."""

    def __init__(self, name: str, c: int, o: int, stride: int, down: bool, place: Separables, se: int) -> None:
        super().__init__()
        self.down, half = down, o // 2
        self.shortcut = Shortcut(f"{name}.shortcut", c, half, stride, place) if down else nn.Identity()
        self.branch = Branch(f"{name}.branch", c if down else half, half, stride, place, se)

    def forward(self, x: Tensor) -> Tensor:
        a, b = (x, x) if self.down else x.chunk(2, 1)
        return F.channel_shuffle(torch.cat([self.shortcut(a), self.branch(b)], 1), 2)


class Shortcut(nn.Module):
    """The other branch of a unit that changes the size: DW 3×3 → norm → PW → norm → relu. `N C H W -> N O P Q`."""

    def __init__(self, name: str, c: int, o: int, stride: int, place: Separables) -> None:
        super().__init__()
        both = place.pair(f"{name}.depthwise", c, o, 3, stride)
        self.depthwise = both or place.depthwise(f"{name}.depthwise", c, 3, stride)
        wide = 2 * c if place.doubles and place.stands_at(f"{name}.depthwise") else c
        self.norm1 = nn.Identity() if both else nn.BatchNorm2d(wide)
        self.pointwise = nn.Identity() if both else _pointwise(f"{name}.pointwise", wide, o, place)
        self.norm2, self.act2 = nn.BatchNorm2d(o), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.norm2(self.pointwise(self.norm1(self.depthwise(x)))))  # type: ignore[no-any-return]


class First(ConvNormAct):
    """The first layer and the max-pool after it."""

    def __init__(self, conv: nn.Module, channels: int, pool: int) -> None:
        super().__init__(conv, nn.BatchNorm2d(channels), "relu")
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if pool == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(super().forward(x))  # type: ignore[no-any-return]


def _pointwise(name: str, c: int, o: int, place: Separables) -> nn.Module:
    """A 1×1 that DRConv leaves as it is."""
    return standard(c, o, 1) if place.operator.name == "drconv" else place.layer(name, c, o, 1)


def shufflenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 0.5,
    conv: str = "conv",
    keep: str = "",
    se: int = 0,
    small_input: bool = False,
    dropout: float = 0.0,
) -> Classifier:
    """ShuffleNetV2: images `N in_channels H W` to logits `N num_classes`.

    Layers are "stages.I.J.branch.pointwise1|depthwise|pointwise2", "….shortcut.depthwise|pointwise", "last.conv".

    Args:
        width: 0.5, 1.0, 1.5 or 2.0: the paper's four.
        conv: operator string; drconv without `guide=` shares one guide in each unit.
        keep: glob over layer names, several parted by spaces; these stay standard.
        se: reduction of a squeeze-excite at the end of every branch, 0 for none.
        small_input: stride 1 in the first layer, and no max-pool, for 32×32 images.
        dropout: before the classifier, while training.
    Raises: BadInput for a value out of range, UnsupportedConv (naming the layer) where the operator does not fit.
    """
    settings: dict[str, Any] = dict(locals())
    name = "shufflenet_v2"
    check_options(
        name, whole={"num_classes": num_classes, "in_channels": in_channels}, flags={"small_input": small_input}
    )
    if isinstance(width, bool) or width not in _WIDTHS:
        raise BadInput(f"{name}: width={width!r}: one of {', '.join(map(str, _WIDTHS))}")
    place, stride, se = Separables(name, conv, keep), Strides(small_input), reduction(name, se)
    *widths, last = _WIDTHS[width]
    c = 24
    first = First(standard(in_channels, c, 3, stride(2)), c, stride(2))
    stages: list[list[nn.Module]] = []
    for i, (o, units) in enumerate(zip(widths, _UNITS, strict=True)):
        stages.append([])
        for j in range(units):
            stages[i].append(Unit(f"stages.{i}.{j}", c, o, 2 if j == 0 else 1, j == 0, place, se))
            c = o
    end = ConvNormAct(_pointwise("last.conv", c, last, place), nn.BatchNorm2d(last), "relu")
    head = nn.Sequential(nn.Dropout(probability(name, dropout)), nn.Linear(last, num_classes))
    return Classifier(place, settings, first, stages, end, head)
