"""Separable blocks with any operator in them: the blocks of MobileNetV2, MobileNetV3 and MnasNet.

    expand 1×1 → norm → act → depthwise k×k → norm → act → [squeeze-excite] → project 1×1 → norm [+ input]

An operator stands where `Replaced` says: for the depthwise layers (XSepConv, FuSeConv, InceptionDW), for the 1×1 layers
(DRConv, topological) or for both (ODConv). One that replaces dense layers alone takes a depthwise layer and the 1×1
after it together, as HetConv's MobileNet does; then one norm follows, and the squeeze-excite where there is one.
FuSeConv's full form gives 2C channels for C, which the squeeze-excite and the 1×1 after it then read. Beside FuSeConv
and XSepConv the squeeze-excite stands before the activation, as in FuSeConv's code.
Source: Sandler et al. 2018, arXiv:1801.04381, section 3.3; Howard et al. 2019, arXiv:1905.02244, section 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.models.replaced import Replaced, checked_image
from leanconv.spec import ConvSpec

ACTS: dict[str, Any] = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish}
Make = Callable[[int], nn.Module]


class Separables(Replaced):
    """`Replaced` for networks of depthwise and 1×1 layers.

    Attributes:
        pairs: whether the operator takes a depthwise layer and the 1×1 after it together.
        doubles: FuSeConv's full form.
        se_first: whether the squeeze-excite stands before the activation where the operator does.
    """

    def __init__(self, network: str, conv: str, keep: str = "") -> None:
        super().__init__(network, conv, keep)
        self.pairs = not self.is_standard and not {"depthwise", "pointwise"} & self.operator.replaces
        self.doubles = self.operator.name == "fuseconv" and self.options.get("variant") == "full"
        self.se_first = self.operator.name in ("fuseconv", "xsepconv")

    def depthwise(self, name: str, c: int, kernel: int, stride: int = 1, act: str = "relu") -> nn.Module:
        """The k×k layer of C channels, C or (`doubles`) 2C out. `act`: the block's activation."""
        spec = ConvSpec.of(c, c, kernel, stride, kernel // 2, groups=c, bias=False)
        inner = {"act": act} if self.operator.name == "xsepconv" else {}  # its activations in between are its block's
        return self._layer(name, spec, 2 * c if self.doubles else c, **inner)

    def pair(self, name: str, c: int, o: int, kernel: int, stride: int = 1) -> nn.Module | None:
        """The operator for a depthwise k×k of C channels and the 1×1 to O after it; None where it does not stand."""
        if not self.pairs:
            return None
        found = self.layer(name, c, o, kernel, stride)
        return found if self.stands_at(name) else None

    def stands_at(self, name: str) -> bool:
        """Whether the operator stands at the layer of that name."""
        return name in self.replaced


@dataclass(frozen=True)
class Block:
    """Sizes of one block: input, expanded and output channels. `expands`: whether the first 1×1 is there."""

    c: int
    inner: int
    o: int
    kernel: int
    stride: int
    act: str
    se: Make | None = None
    expands: bool = True


class InvertedResidual(nn.Module):
    """One block: `N C H W -> N O P Q`. `name`: where it stands in the network."""

    def __init__(self, name: str, block: Block, place: Separables, norm: Make) -> None:
        super().__init__()
        b, act, spatial = block, ACTS[block.act], f"{name}.depthwise"
        self.residual = b.stride == 1 and b.c == b.o
        self.expand = place.layer(f"{name}.expand", b.c, b.inner, 1) if b.expands else nn.Identity()
        self.norm1 = norm(b.inner) if b.expands else nn.Identity()
        self.act1 = act(inplace=True) if b.expands else nn.Identity()
        both = place.pair(spatial, b.inner, b.o, b.kernel, b.stride)
        self.depthwise = both or place.depthwise(spatial, b.inner, b.kernel, b.stride, b.act)
        stands = place.stands_at(spatial)
        wide = b.o if both else b.inner * (2 if stands and place.doubles else 1)
        self.se_first = stands and place.se_first
        self.norm2 = nn.Identity() if both else norm(wide)
        self.act2 = nn.Identity() if both else act(inplace=True)
        self.se = b.se(wide) if b.se else nn.Identity()
        self.project = nn.Identity() if both else place.layer(f"{name}.project", wide, b.o, 1)
        self.norm3 = norm(b.o)

    def forward(self, x: Tensor) -> Tensor:  # N C H W -> N O P Q
        z = self.act1(self.norm1(self.expand(x)))
        z = self.norm2(self.depthwise(z))
        z = self.act2(self.se(z)) if self.se_first else self.se(self.act2(z))
        z = self.norm3(self.project(z))
        return x + z if self.residual else z  # type: ignore[no-any-return]


class Separable(nn.Module):
    """MnasNet's first block: depthwise 3×3 → norm → act → 1×1 → norm. `N C H W -> N O H W`."""

    def __init__(self, name: str, c: int, o: int, act: str, place: Separables, norm: Make) -> None:
        super().__init__()
        spatial = f"{name}.depthwise"
        both = place.pair(spatial, c, o, 3)
        self.depthwise = both or place.depthwise(spatial, c, 3, 1, act)
        wide = 2 * c if place.doubles and place.stands_at(spatial) else c
        self.norm1 = nn.Identity() if both else norm(wide)
        self.act1 = nn.Identity() if both else ACTS[act](inplace=True)
        self.project = nn.Identity() if both else place.layer(f"{name}.project", wide, o, 1)
        self.norm2 = norm(o)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.depthwise(x)))
        return self.norm2(self.project(x))  # type: ignore[no-any-return]


class ConvNormAct(nn.Module):
    """A convolution, its norm, its activation: a network's first layer and its last."""

    def __init__(self, conv: nn.Module, norm: nn.Module, act: str) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, ACTS[act](inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class Classifier(nn.Module):
    """Images `N C H W` to logits `N num_classes`: first, stages, last, the global average, classifier.

    `replaced`: the names of the layers where the operator stands; `settings`: the builder's options.
    """

    def __init__(
        self,
        place: Replaced,
        settings: dict[str, Any],
        first: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        last: nn.Module,
        classifier: nn.Sequential,
    ) -> None:
        super().__init__()
        place.finish()
        self.network, self.replaced, self.settings = place.network, tuple(place.replaced), settings
        self.first = first
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.last, self.classifier = last, classifier
        for module in classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = checked_image(self.network, x, self.settings["in_channels"])
        x = self.last(self.stages(self.first(x)))
        return self.classifier(x.mean((2, 3)))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return ", ".join([self.network, *(f"{name}={value!r}" for name, value in self.settings.items())])


class Strides:
    """Hands out the strides of a network; with `small_input` its first two strides of 2 become 1."""

    def __init__(self, small_input: bool) -> None:
        self.left = 2 if small_input else 0

    def __call__(self, stride: int) -> int:
        if stride == 1 or not self.left:
            return stride
        self.left -= 1
        return 1


def divisible(network: str, channels: float, width: Any, multiple: int = 8) -> int:
    """`channels · width` as a multiple, at least 90 % of it: the rule of the MobileNets' own code."""
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 64:
        raise BadInput(f"{network}: width={width!r}: a factor above 0, such as 0.75, and at most 64")
    wanted = channels * width
    found = max(multiple, int(wanted + multiple / 2) // multiple * multiple)
    return found + multiple if found < 0.9 * wanted else found


def reduction(network: str, se: Any) -> int:
    """Raises BadInput unless `se` is a reduction, or 0 for no squeeze-excite."""
    if isinstance(se, bool) or not isinstance(se, int) or se < 0:
        raise BadInput(f"{network}: se={se!r}: a reduction like 4, or 0 for none")
    return se


def probability(network: str, dropout: Any) -> float:
    """Raises BadInput unless `dropout` is a probability."""
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise BadInput(f"{network}: dropout={dropout!r}: a number from 0, below 1")
    return float(dropout)
