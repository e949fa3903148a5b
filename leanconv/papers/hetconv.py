"""The networks of the HetConv paper's tables 1 to 7, and the rule that its CIFAR and ResNet-34 totals follow.

The paper states no counting rule. `het_eq5` was inferred from table 1's digits. It takes a replaced layer's figures
from the *standard* layer. These are MACs and a bias add per output, weights, bias and four BatchNorm numbers per
channel. It multiplies all of them by eq. 5's ratio 1/P + (1 - 1/P)/9. No real layer has these figures, because bias
and BatchNorm do not shrink in a HetConv. So counts of the real layers follow each of its tables.
"""

from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from leanconv.measure.counting.record import ModuleCall, Recording
from leanconv.nn import HetConv2d, Operator, SqueezeExcite
from leanconv.nn.separable import SpatialThenPointwise
from leanconv.papers.network import Network

# P = the layer's number of channels: one 3×3 kernel per filter.
_PER_CHANNEL = "hetconv(part={c})"


def _networks() -> dict[str, Network]:
    found = {}
    conv = {f"P{part}": "conv" if part == 1 else f"hetconv(part={part})" for part in (1, 2, 4, 8, 16, 32, 64)}
    for word, operator in {**conv, "PC": _PER_CHANNEL}.items():
        found[f"vgg16_cifar_{word}"] = Network("vgg16_cifar", {"conv": operator})
        found[f"vgg16_cifar_{word}_SE"] = Network("vgg16_cifar", {"conv": operator, "se": 8})
    found["vgg16_cifar_GWC4_PWC"] = Network("vgg16_cifar", {"conv": "group_pointwise(part=4)"})
    found["vgg16_cifar_DWC_PWC"] = Network("vgg16_cifar", {"conv": "depthwise_separable"})
    for part in (1, 2, 4):
        plain = {"conv": conv[f"P{part}"]}
        biased = {**plain, "conv_bias": True}
        found[f"resnet56_cifar_P{part}"] = Network("resnet56_cifar", biased)
        found[f"resnet56_cifar_P{part}_SE"] = Network("resnet56_cifar", {**biased, "se": 8})
        zero_pad = {**biased, "shortcut": "zero_pad"}
        found[f"resnet34_imagenet_P{part}"] = Network("resnet34", zero_pad)
        found[f"resnet34_imagenet_P{part}_SE"] = Network("resnet34", {**zero_pad, "se": 8})
        found[f"resnet50_imagenet_P{part}"] = Network("resnet50", plain)
        found[f"vgg16_imagenet_P{part}"] = Network("vgg16", plain)
    found["mobilenet_cifar"] = Network("mobilenet_v1_cifar")
    found["mobilenet_cifar_P32"] = Network("mobilenet_v1_cifar", {"conv": "hetconv(part=32)"})
    found["mobilenet_cifar_P32_SE"] = Network("mobilenet_v1_cifar", {"conv": "hetconv(part=32)", "se": 8})
    return found


NETWORKS: dict[str, Network] = _networks()
ALTERNATIVES: dict[str, dict[str, str]] = {}


def _baseline(model_id: str, column: str) -> str:
    family = model_id.removesuffix("WC").rpartition("_P")[0].removesuffix("_GWC4").removesuffix("_DWC")
    return f"{family}_P1_SE" if column == "params" and model_id.endswith("_SE") else f"{family}_P1"


# The dense network of a percentage: P1, or P1_SE for the parameters of an _SE row (as printed).
BASELINES: dict[tuple[str, str], str] = {
    (model_id, column): _baseline(model_id, column)
    for model_id in NETWORKS
    for column in ("params", "flops")
    if not model_id.startswith("mobilenet")
}
# The convention that counts the real layers of rows with a formula.
COUNTED = "macs_weights"
READINGS = {
    "real layers": "the network as built, counted: weights and multiply-accumulates that are really there; "
    "PC with P = the layer's input channels, because P = its output channels asks a widening layer for half a kernel"
}
_REAL_SE = (
    "the paper's parameters have half of a reduction-8 squeeze-excite's weights, its FLOPs have all of them; "
    "the real block's 452,608 are counted here"
)
_NO_BIAS = "this baseline's printed figures need the bias adds and the BatchNorm numbers that macs_weights leaves out"
REASONS: dict[tuple[str, str, str], str] = {
    **{(model_id, "params", COUNTED): _REAL_SE for model_id in NETWORKS if model_id.endswith("_SE")},
    **{(f"vgg16_cifar_{w}", c, COUNTED): _NO_BIAS for w in ("GWC4_PWC", "DWC_PWC") for c in ("params", "flops")},
}


@dataclass(frozen=True)
class Totals:
    """A network's figures by the formula, rounded to whole numbers."""

    params: int
    flops: int


def het_eq5(network: Network, recording: Recording) -> Totals:
    """Return the HetConv paper's totals for a network and a recorded forward.

    Stem and FC layers are not scaled. FC adds MACs only. The 1×1 of a group or depthwise pair has no bias add. A
    squeeze-excite counts fully in FLOPs and half in parameters. In the PC rows, P is the number of *output* channels.
    """
    return _totals(network, recording, numbers=True)


def het_eq5_weights(network: Network, recording: Recording) -> Totals:
    """Like `het_eq5`, without biases and BatchNorm in the parameters. It fits the row PC_SE's parameters."""
    return _totals(network, recording, numbers=False)


# Name of the convention in the tables -> formula. In a row of "a:b", the parameters follow b and the rest a.
FORMULAS = {"het_eq5": het_eq5, "het_eq5:macs_weights": het_eq5_weights}


def _totals(network: Network, recording: Recording, *, numbers: bool) -> Totals:
    calls, whole = recording.calls, (Operator, SqueezeExcite)
    blocks = tuple(f"{call.name}." for call in calls if isinstance(call.module, whole))
    params, flops = Fraction(0), Fraction(0)
    for call in calls:
        if not call.name.startswith(blocks or ("\0",)):
            weights, others, work = _layer(call, network.options.get("conv") == _PER_CHANNEL)
            params += weights + others * numbers
            flops += work
    return Totals(round(params), round(flops))


def _layer(call: ModuleCall, per_output: bool) -> tuple[Fraction, Fraction, Fraction]:
    """Return (weights, bias and BatchNorm numbers, FLOPs) of one layer."""
    layer, zero = call.module, Fraction(0)
    pixels = call.out_shape[2] * call.out_shape[3] if len(call.out_shape) == 4 else 1
    if isinstance(layer, SpatialThenPointwise):
        c, o, taps = layer.in_channels, layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1]
        spatial = c * c // layer.spatial.groups * taps
        return Fraction(spatial + c * o), Fraction(5 * (c + o)), Fraction(pixels * (spatial + c + c * o))
    if isinstance(layer, (HetConv2d, nn.Conv2d)):
        c, o, taps = layer.in_channels, layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1]
        part = 1
        if isinstance(layer, HetConv2d):
            part = o if per_output else layer.part
        ratio = Fraction(1, part) + (1 - Fraction(1, part)) / taps
        return ratio * taps * c * o, ratio * 5 * o, ratio * pixels * (taps * c * o + o)
    if isinstance(layer, SqueezeExcite):
        matrices = layer.down.weight.numel() + layer.up.weight.numel()
        return Fraction(matrices, 2), zero, Fraction(matrices)
    if isinstance(layer, nn.Linear):
        return Fraction(layer.weight.numel()), Fraction(layer.out_features), Fraction(layer.weight.numel())
    if isinstance(layer, nn.BatchNorm1d):
        return zero, Fraction(4 * layer.num_features), zero
    return zero, zero, zero
