"""The generated parts of pages that are written by hand: what stands between `<!-- name -->` and `<!-- /name -->`."""

import re
from collections.abc import Callable
from typing import Any

from docs.generate.int8 import int8_accuracy
from docs.generate.journeys import journeys
from docs.generate.markdown import table
from docs.generate.measured import Results
from docs.generate.sections import shares, trained
from docs.generate.speed import (
    choices,
    default_budget,
    engines,
    kernels,
    layers,
    networks,
    outcome,
    setting,
)
from docs.generate.tiles import tiles
from docs.generate.training import (
    data_loading,
    feature_error,
    keep_learnt,
    lean_networks,
    training_kernels,
    training_steps,
)

UNTOUCHED, SIDE = "timm:mobilenetv3_small_100", "1x3x224x224, 1"
# The README's five rows: (model, input and threads), from networks as they come to the best and the worst swap.
FIVE = (
    (UNTOUCHED, SIDE),
    ("timm:mobilenetv1_100", SIDE),
    ("timm:resnet18 to hetconv(part=4)", SIDE),
    ("leanconv:resnet50?conv=hetconv(part=4)", SIDE),
    ("leanconv:unet?base=32&conv=splconv", "1x3x256x256, 1"),
)
PEERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "fused": "ours"}


def filled(text: str, results: Results) -> str:
    """The page with each of its blocks written anew. Raises ValueError where a block does not end."""
    for name in re.findall(r"^<!-- (\w+) -->$", text, re.MULTILINE):
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, mark, after = rest.partition(end)
        if not mark:
            raise ValueError(f"{start.strip()} has no {end}")
        block = BLOCKS[name](results)
        text = f"{before}{start}{block}\n{end}{after}" if block else f"{before}{start}{end}{after}"
    return text


def headline(results: Results) -> str:
    """One measured number, and the device."""
    entry = _row(results, UNTOUCHED, SIDE)
    found = outcome(entry) or {}
    best = f"{PEERS[found['peer']]}, the best of the others, takes {found['peer ms']:.2f} ms"
    plain = f"PyTorch in channels_last {found['peers']['channels_last']:.2f} ms"
    return (
        f"On one thread of an {entry['machine']['name']}, timm's MobileNetV3-Small, not retrained, takes "
        f"**{found['ms']:.2f} ms** an image in our engine. {best}; {plain}."
    )


def five(results: Results) -> str:
    """The README's table."""
    rows = []
    for model, how in FIVE:
        entry = _row(results, model, how)
        found = outcome(entry) or {}
        dense = f"{found['dense ms']:.3g} ({PEERS[found['dense engine']]})" if "dense" in found else "-"
        peer = f"{found['peer ms']:.3g} ({PEERS[found['peer']]})"
        rows.append([f"`{model}`", f"{found['ms']:.3g}", peer, dense, f"{found.get('dense', found['gain']):.2f}x"])
    head = ["network", "fused, ms", "next best engine, ms", "dense, best engine, ms", "gain"]
    return table(head, rows, "lrrrr")


def _row(results: Results, model: str, how: str) -> dict[str, Any]:
    entries = results.engines["fused_engine"]
    return next(entry for entry in entries if entry["model"] == model and setting(entry) == how)


def papers(results: Results) -> str:
    """Our short budget beside what the SPLConv paper prints."""
    rows = [
        [
            row["model"],
            *(f"{row[key]['mean']:.3f}" for key in ("image_iou", "image_dice")),
            row["seeds"],
            *(f"{row['paper'][key]:.4f}" if row.get("paper") else "-" for key in ("mean_iou", "dice")),
        ]
        for row in results.segmentation["segmentation_wafer"]["rows"]
    ]
    head = ["model", "our IoU", "our Dice", "seeds", "paper's IoU", "paper's Dice"]
    return table(head, rows, "lrrrrr")


def _sections(kind: str, section: Callable[[str, Any], str]) -> Callable[[Results], str]:
    return lambda results: "\n\n".join(section(stem, content) for stem, content in getattr(results, kind).items())


def _budget(results: Results) -> str:
    measured = _sections("budgets", default_budget)(results)
    return measured or (
        "## `optimize` within its default budget\n\n"
        "Not measured on this commit yet; `python -m benchmarks.default_budget` measures it."
    )


BLOCKS: dict[str, Callable[[Results], str]] = {
    "headline": headline,
    "five": five,
    "budget": _budget,
    "choices": _sections("choices", choices),
    "engines": _sections("engines", engines),
    "networks": _sections("networks", networks),
    "kernels": lambda results: kernels(results.kernels),
    "tiles": lambda results: tiles(results.tiles),
    "layers": _sections("layers", layers),
    "segmentation": _sections("segmentation", lambda stem, c: trained(stem, c, "dice", "Segmentation")),
    "papers": papers,
    "classification": _sections("classification", lambda stem, c: trained(stem, c, "top1", "Classification")),
    "kept": _sections("kept", keep_learnt),
    "lean": _sections("lean", lean_networks),
    "features": _sections("features", feature_error),
    "shares": _sections("shares", shares),
    "against_dense": _sections("against_dense", training_steps),
    "training": _sections("steps", training_kernels),
    "loading": _sections("loading", data_loading),
    "photographs": _sections("journeys", journeys),
    "int8": _sections("int8", int8_accuracy),
}
