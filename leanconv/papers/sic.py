"""SIC's ratios: how many times fewer multiplications than the standard network, from the paper's abstract.

No stored copy contains the paper's network tables, so its networks cannot be rebuilt. We count the standard network
with a SIC layer for every 3×3 convolution. Other readings add more of the paper's ideas.
"""

import sys
from dataclasses import dataclass
from typing import Any

from leanconv.papers.entry import Entry
from leanconv.papers.figures import Figures
from leanconv.papers.network import Network

LOST = (
    "the paper's network tables are lost, and with them what its networks were; ours is the standard network with a "
    "SIC layer for every 3x3 convolution"
)
_STANDARD: dict[str, tuple[str, dict[str, Any]]] = {
    "vgg16": ("vgg16", {}),
    "resnet50": ("resnet50", {"stride_on": "1x1"}),  # 3.858G; the paper says 3800M
    "resnet101": ("resnet101", {"stride_on": "1x1"}),  # 7.570G; the paper says 7600M
}
_FORMS = {"sic": "sic", "two units": "sic(units=2)", "topological": "topological"}
NETWORKS: dict[str, Network] = {
    **{name: Network(*standard) for name, standard in _STANDARD.items()},
    **{
        f"{name}_{form}": Network(network, {**options, "conv": conv})
        for name, (network, options) in _STANDARD.items()
        for form, conv in _FORMS.items()
    },
}
READINGS = {
    "two units": "two SIC units for every 3x3 convolution",
    "topological": "topological subdivisioning (half of each grid dimension seen) in every 3x3 and the ResNets' 1x1",
}
ALTERNATIVES: dict[str, dict[str, str]] = {}


@dataclass(frozen=True)
class Ratio:
    """A printed ratio: multiplications of `dense` divided by the paper's network's."""

    table: str
    row: str
    dense: str
    printed: float
    input: tuple[int, int, int] = (3, 224, 224)


RATIOS = (
    Ratio("ratios", "VGG-16", "vgg16", 42.0),
    Ratio("ratios", "ResNet-50", "resnet50", 4.5),
    Ratio("ratios", "ResNet-101", "resnet101", 6.5),
)


def ratio_entries(ratio: Ratio, size: tuple[int, int] | None, figures: Figures) -> list[Entry]:
    """Return the entry of a ratio, then its other readings. A `size` (H, W) other than the paper's disables `error`."""
    paper, shape = sys.modules[__name__], (ratio.input[0], *size) if size else ratio.input
    dense = figures.of(paper, ratio.dense, "macs_weights", shape)[0].flops
    found = []
    for form in _FORMS:
        ours = dense / figures.of(paper, f"{ratio.dense}_{form}", "macs_weights", shape)[0].flops
        error = None if size else ours / ratio.printed - 1
        name, reason = (ratio.row, LOST) if form == "sic" else (f"{ratio.row} [{form}]", "")
        found.append(
            Entry(
                "sic",
                ratio.table,
                name,
                "MACs, times fewer",
                "macs_weights",
                "x".join(map(str, shape)),
                ratio.printed,
                ours,
                error,
                None if error is None else abs(error) <= 0.005,
                "counted",
                reason,
            )
        )
    return found


def networks_of(ratio: Ratio) -> dict[str, Network]:
    """Return the standard network of a ratio and our versions of the paper's."""
    names = [ratio.dense, *(f"{ratio.dense}_{form}" for form in _FORMS)]
    return {name: NETWORKS[name] for name in names}
