"""The networks of ODConv's results: ResNet-18/50/101 and MobileNetV2 at three widths, n kernels in every layer.

The figures are those of the authors' repository. ODConv replaces the convolutions of the ResNets' residual branches,
and all of MobileNetV2's but the first and the classifier. The ResNets' strides are on the first 1×1: the printed MAdds
need that, although the authors' code strides the 3×3. The convention `od` is a fit to the digits with exact parameters.
"""

from typing import Any

from leanconv.papers.network import Network


def _networks() -> dict[str, Network]:
    found = {"resnet18": Network("resnet18")}
    for depth in (18, 50, 101):
        options: dict[str, Any] = {} if depth == 18 else {"stride_on": "1x1"}
        if options:
            found[f"resnet{depth}_s1x1"] = Network(f"resnet{depth}", options)
        for kernels in (1, 2, 4):
            replaced = {"conv": f"odconv(kernels={kernels})", **options}
            found[f"odconv_resnet{depth}_K{kernels}"] = Network(f"resnet{depth}", replaced)
    for width in ("1", "0.75", "0.5"):
        for kernels in (0, 1, 4):
            replaced = {"conv": f"odconv(kernels={kernels})"} if kernels else {}
            found[f"mbv2_{width}_K{kernels}"] = Network("mobilenet_v2", {"width": float(width), **replaced})
    return found


NETWORKS: dict[str, Network] = _networks()
READINGS: dict[str, str] = {}
ALTERNATIVES: dict[str, dict[str, str]] = {}
REASONS: dict[tuple[str, str, str], str] = {
    ("odconv_resnet50_K4", "flops", "od"): "the MAdds rule is a fit, and this is the one row that it misses by more "
    "than 0.5 %; the parameters are exact"
}
