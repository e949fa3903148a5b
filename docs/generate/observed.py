"""What an operator does, found by trying: what it folds to, what it keeps of trained weights, which layers it takes."""

import ast
import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.nn import get, make, parse
from leanconv.registry import options_of
from leanconv.spec import ConvSpec

# The layer that every operator is costed on, and what stands for it where an operator replaces another kind.
REFERENCE = {
    "dense": ConvSpec.of(64, 128, 3, 1, 1, bias=False, h=56, w=56),
    "depthwise": ConvSpec.of(64, 64, 7, 1, 3, groups=64, bias=False, h=56, w=56),
}
LAYERS = {
    "3×3": REFERENCE["dense"],
    "3×3, stride 2": ConvSpec.of(64, 128, 3, 2, 1, h=56, w=56),
    "3×3, stride 3": ConvSpec.of(64, 128, 3, 3, 1, h=57, w=57),
    "3×3, dilation 2": ConvSpec.of(64, 128, 3, 1, 2, 2, h=56, w=56),
    "3×3 without padding": ConvSpec.of(64, 128, 3, h=56, w=56),
    "3×3, reflected border": ConvSpec.of(64, 128, 3, 1, 1, padding_mode="reflect", h=56, w=56),
    "3×3, 30 -> 50 channels": ConvSpec.of(30, 50, 3, 1, 1, h=56, w=56),
    "4×4, stride 2": ConvSpec.of(64, 128, 4, 2, 1, h=56, w=56),
    "1×1": ConvSpec.of(64, 128, 1, h=56, w=56),
    "3×3 depthwise": ConvSpec.of(64, 64, 3, 1, 1, groups=64, h=56, w=56),
    "7×7 depthwise": REFERENCE["depthwise"],
    "7×7 depthwise, stride 2": ConvSpec.of(64, 64, 7, 2, 3, groups=64, h=56, w=56),
    "3×3 in 4 groups": ConvSpec.of(64, 128, 3, 1, 1, groups=4, h=56, w=56),
}  # fmt: skip


@dataclass(frozen=True)
class Observed:
    """How one operator behaves on its reference layer, each as a sentence that stands on a page."""

    folds: str
    short: str
    weights: str
    norm: str


def reference(name: str) -> ConvSpec:
    """The reference layer of an operator: the dense one where it replaces dense layers, else the depthwise one."""
    return REFERENCE["dense" if "dense" in get(name).replaces else "depthwise"]


def observe(name: str) -> Observed:
    """Build the operator with its defaults on its reference layer, fold it, and hand it trained weights."""
    torch.manual_seed(0)
    spec = reference(name)
    layer = make(name, **spec.arguments()).eval()
    norms = _norms(layer)
    folded = layer.fold()
    before, after = (sum(p.numel() for p in m.parameters()) for m in (layer, folded))
    short, folds = _fold_words(layer, folded, norms, _norms(folded))
    if before != after:
        folds += f" Learnable numbers: {before:,} before, {after:,} after."
    takes = make(name, **spec.arguments()).eval().scale_output_(torch.ones(spec.o), torch.zeros(spec.o))
    norm = "A BatchNorm that follows it in your network is absorbed into its weights by `fold_`."
    return Observed(
        folds,
        short,
        _weights(name, spec),
        norm if takes else "A BatchNorm that follows it in your network stays: nothing in it can absorb one exactly.",
    )


def _norms(module: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


def _fold_words(layer: nn.Module, folded: nn.Module, norms: int, left: int) -> tuple[str, str]:
    if folded is layer:
        return "itself", "There is nothing to fold inside it: `fold()` gives the operator itself."
    if type(folded) is nn.Conv2d:
        return "a plain convolution", "`fold()` gives a plain `nn.Conv2d`, exactly equal in eval mode."
    gone = f"its {norms - left} inner BatchNorms absorbed" if norms - left > 1 else "its inner BatchNorm absorbed"
    exact = "exactly equal in eval mode"
    if type(folded) is type(layer):
        return (
            "itself, BatchNorm absorbed",
            f"`fold()` gives the same operator with {gone}, {exact}.",
        )
    line = (inspect.getdoc(type(folded)) or "").partition("\n")[0].partition(" `N C H W")[0]
    return (
        "a leaner form",
        f"`fold()` gives a leaner module with {gone}, {exact}. {line}",
    )


@torch.no_grad()
def _weights(name: str, spec: ConvSpec) -> str:
    """What `apply_` keeps of a trained layer, tried on random weights in float64."""
    conv = spec.conv(dtype=torch.double).eval()
    new = get(name).from_conv(conv)
    if not new.project_(conv):
        return "starts fresh"
    x = torch.randn(2, spec.c, 9, 9, dtype=torch.double)
    near = torch.allclose(_answer(new, x), conv(x), rtol=1e-6, atol=1e-6)
    return "exactly" if near else "the nearest"


def _answer(layer: nn.Module, x: Tensor) -> Tensor:
    answer: Tensor = layer(x)
    return answer


def taken(name: str, text: str | None = None) -> list[tuple[str, str]]:
    """For each of `LAYERS` of a kind that it replaces: "yes", or why `plan` without `where` keeps it."""
    _, options = parse(text or name)
    meant = {title: spec for title, spec in LAYERS.items() if spec.kind in get(name).replaces}
    return [(title, _why_kept(name, spec, options) or "yes") for title, spec in meant.items()]


def _why_kept(name: str, spec: ConvSpec, options: dict[str, Any]) -> str | None:
    cls = get(name)
    if rule := cls.why_keep(spec):
        return f"{rule} (outside the paper's rule; name it in `where` to swap it)"
    reason: str | None = cls.why_not(spec, **options)
    return reason


def formula(name: str) -> str:
    """The docstring of the operator's file: its definition, MACs and source."""
    return inspect.getdoc(inspect.getmodule(get(name))) or ""


def option_words(name: str) -> dict[str, str]:
    """Option -> what its class's docstring says about it."""
    tree = ast.parse(inspect.getsource(get(name)).lstrip())
    text = ast.get_docstring(tree.body[0]) or ""  # type: ignore[arg-type]
    known, found, current = options_of(get(name)), {}, ()
    for line in text.partition("Args:")[2].splitlines()[1:]:
        match = re.fullmatch(r" {4}(\w+(?:, \w+)*): (.*)", line)
        if match and all(word in known for word in match[1].split(", ")):
            current = tuple(match[1].split(", "))
            found |= dict.fromkeys(current, match[2])
        elif line.startswith(" " * 8) and current:
            found |= {word: f"{found[word]} {line.strip()}" for word in current}
        else:
            current = ()
    return found
