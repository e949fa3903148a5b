"""The picture at the top of the README: a synthetic wafer, its mask, and the measured times of a U-Net on an image."""

import json
from pathlib import Path

import numpy as np

from docs.generate.measured import Results
from leanconv.extras import needs
from leanconv.files import replace_atomic

NAME = "banner.png"
SEED, SIDE = 1, 224
DENSE, LEAN = "leanconv:unet?base=32&conv=conv", "leanconv:unet?base=32&conv=splconv"
# (label, network, engine), slowest first; a label ends in what runs the network.
BARS = (
    ("dense, PyTorch", DENSE, "channels_last"),
    ("dense, OpenVINO", DENSE, "openvino"),
    ("dense, leanconv", DENSE, "fused"),
    ("SPLConv, PyTorch", LEAN, "channels_last"),
    ("SPLConv, OpenVINO", LEAN, "openvino"),
    ("SPLConv, leanconv", LEAN, "fused"),
)
_INK, _PEER, _OURS, _MASK = "#333333", "#b8c4cc", "#0072b2", (213, 94, 0)


def times(results: Results) -> dict[str, float]:
    """Bar -> median ms, 256×256, batch 1, float32, one thread, all from one entry: they took turns in one process."""
    wanted = {"model": LEAN, "size": "256", "batch": 1, "threads": 1, "dtype": "float32"}
    entry = next(
        each
        for each in results.engines["fused_engine"]
        if all(str(each.get(key, "float32")) == str(value) for key, value in wanted.items())
    )
    return {label: entry["times"][f"{network}, {engine}"]["median_ms"] for label, network, engine in BARS}


def draw_banner(path: Path, results: Results) -> Path:
    """Write the picture; its numbers travel in it. Equal data give equal bytes under one version of matplotlib."""
    with needs("matplotlib", "report"):
        import matplotlib
        from matplotlib.figure import Figure
    from leanconv.train.synthetic.wafer import wafer

    image, mask, _ = wafer(SEED, size=SIDE)
    marked = image.copy()
    marked[mask == 1] = 0.35 * image[mask == 1] + 0.65 * np.array(_MASK)
    measured = times(results)
    with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(11, 3.1), layout="constrained")
        photograph, defects, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
        for axes, picture, title in (
            (photograph, image, "Synthetic wafer photograph"),
            (defects, marked, "Its defects (the mask)"),
        ):
            axes.imshow(picture)
            axes.set_title(title, color=_INK, fontsize=11)
            axes.set_axis_off()
        drawn = bars.barh(
            list(measured),
            list(measured.values()),
            color=[_OURS if "leanconv" in label else _PEER for label in measured],
        )
        bars.bar_label(drawn, [f"{ms:.0f} ms" for ms in measured.values()], padding=4, color=_INK)
        bars.invert_yaxis()
        bars.set_xlim(0, 1.18 * max(measured.values()))
        bars.set_xticks([])
        bars.tick_params(left=False)
        bars.spines[:].set_visible(False)
        bars.set_title("U-Net, 256×256, one thread (AMD EPYC)", color=_INK, fontsize=11)
        about = {"Software": None, "Description": json.dumps(measured)}
        return replace_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120, metadata=about))


def banner_times(path: Path) -> dict[str, float]:
    """The numbers that a written picture carries."""
    from PIL import Image

    with Image.open(path) as picture:
        return dict(json.loads(picture.info.get("Description", "{}")))
