"""The networks of SPConv's ImageNet table: ResNet-50 with its sixteen 3×3 convolutions replaced.

They follow the authors' code: two groups for every alpha, two inner BatchNorms, a bias on the plain 1×1. The counting
convention is that of an early thop, inferred from the digits.
"""

from leanconv.papers.network import Network

NETWORKS: dict[str, Network] = {
    "resnet50": Network("resnet50"),
    **{
        f"spconv_resnet50_a{alpha}": Network("resnet50", {"conv": f"spconv(alpha={alpha})", "conv_bias": "3x3"})
        for alpha in (0.5, 0.25, 0.125)
    },
}
READINGS: dict[str, str] = {}
ALTERNATIVES: dict[str, dict[str, str]] = {}
