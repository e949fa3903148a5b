"""The figures of the operators' pages, from the library's own `cost`: SVG files that carry their numbers with them."""

import json
import re
from html import unescape
from pathlib import Path

from leanconv.cost import dense_cost
from leanconv.extras import needs
from leanconv.files import replace_atomic
from leanconv.nn import get
from leanconv.spec import ConvSpec

Series = dict[str, list[tuple[float, float]]]

PARTS = (1, 2, 4, 8, 16, 32, 64)
KERNELS = (3, 5, 7, 9, 11)
_INK, _GRID = "#333333", "#dddddd"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, told apart by colour-blind readers


def hetconv_speedup() -> Series:
    """Kernel side -> (P, dense MACs / HetConv's MACs) on 64 -> 64 channels: the paper's theoretical speed-up."""
    found: Series = {}
    for k in (3, 5, 7, 9):
        spec = ConvSpec.of(64, 64, k, 1, k // 2, bias=False, h=56, w=56)
        dense, cost = dense_cost(spec).macs, get("hetconv").cost
        found[f"{k}×{k}"] = [(part, dense / cost(spec, part=part).macs) for part in PARTS]
    return found


def xsepconv_cost() -> Series:
    """Depthwise form -> (kernel side, MACs a channel and pixel), stride 1, 64 channels at 56×56."""
    found: Series = {"k×k depthwise": [], "XSepConv": []}
    for k in KERNELS:
        spec = ConvSpec.of(64, 64, k, 1, k // 2, groups=64, bias=False, h=56, w=56)
        positions = spec.o * spec.p * spec.q
        found["k×k depthwise"].append((k, dense_cost(spec).macs / positions))
        found["XSepConv"].append((k, get("xsepconv").cost(spec).macs / positions))
    return found


# File -> (what is drawn, title, x axis, y axis, whether both axes are logarithmic)
FIGURES = {
    "hetconv_speedup.svg": (
        hetconv_speedup,
        "HetConv: MACs of the dense layer over its own",
        "part P",
        "times fewer MACs",
        True,
    ),
    "xsepconv_cost.svg": (
        xsepconv_cost,
        "XSepConv against the depthwise kernel it replaces",
        "kernel side k",
        "MACs per channel and pixel",
        False,
    ),
}


def draw(name: str, path: Path) -> Path:
    """Write one figure as SVG; equal data give equal bytes under one version of matplotlib."""
    with needs("matplotlib", "report"):
        import matplotlib
        from matplotlib.figure import Figure
    data, title, across, up, is_log = FIGURES[name]
    series = data()
    settings = {"svg.hashsalt": "leanconv", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for (label, points), colour in zip(series.items(), _COLOURS):
            axes.plot(*zip(*points), marker="o", markersize=4, color=colour, label=label)
        if is_log:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axes.set_ylim(bottom=0)
        axes.set_xticks([x for x, _ in next(iter(series.values()))])
        axes.set_title(title, color=_INK, fontsize=12)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(color=_GRID, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        # Creator and Date would change with the library and the day; the numbers travel in the description.
        about = {"Creator": None, "Date": None, "Title": title, "Description": json.dumps(series)}
        return replace_atomic(path, lambda temporary: figure.savefig(temporary, format="svg", metadata=about))


def drawn(path: Path) -> Series:
    """The numbers that a written figure carries."""
    match = re.search(r"<dc:description>(.*?)</dc:description>", path.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        return {}
    stored = json.loads(unescape(match[1]))
    return {label: [(x, y) for x, y in points] for label, points in stored.items()}
