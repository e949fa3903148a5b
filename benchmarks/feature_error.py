"""How near a fit with some photographs brings a swapped network to its own features, block by block, at 224 px.

    python -m benchmarks.feature_error DATA [--model timm:resnet18?zero_init_last=false] [--to "hetconv(part=4)"]

DATA: photographs of any labelled data reference; every fourth is judged, a fit sees the others. All convolutions that
the operator replaces are swapped, except the first. The error of a block is ‖lean - dense‖ / ‖dense‖ of its output on
the judged photographs, through the whole network up to there; blocks are those around swapped layers. Random weights
get BatchNorm statistics of the photographs, as a network in training would have. Trained ones (a run folder, or
`pretrained=true`) also give the share of photographs with the dense network's top-1. A row for each model and operator
stands in benchmarks/results/feature_error.json.
"""

import argparse
import copy
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.convert import Plan, apply_, plan
from leanconv.files import read_json, write_json
from leanconv.measure.device import describe
from leanconv.runs import load
from leanconv.runs.kinds import read
from leanconv.table import si, table
from leanconv.train.data.augment import to_float
from leanconv.train.distillation.blocks import swapped_blocks
from leanconv.train.distillation.taps import Taps
from leanconv.train.tasks.calibration import BATCH, Pictures, pictures

RESULTS = Path(__file__).parent / "results" / "feature_error.json"
OUTPUT = "output"
EVERY = 4


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    fitted, judged = divided(pictures(arguments.data, arguments.size, arguments.images, split=arguments.split).images)
    torch.manual_seed(0)
    dense = load(arguments.model).eval()
    if not (trained := has_weights(arguments.model)):
        settle_(dense, fitted)
    row = measured(dense, plan(dense, to_float(judged[:1]), to=arguments.to), fitted, judged, trained=trained)
    row = {
        "model": arguments.model, "operator": arguments.to, "size": arguments.size, "threads": arguments.threads,
        "command": "python -m benchmarks.feature_error DATA", "machine": describe(), **row,
    }  # fmt: skip
    path = Path(arguments.out)
    rows = read_json(path)["rows"] if path.exists() else []
    known = (row["model"], row["operator"])
    rows = [each for each in rows if (each["model"], each["operator"]) != known] + [row]
    write_json(path, {"rows": rows})
    print(show(row))


def divided(images: Tensor) -> tuple[Pictures, Tensor]:
    """Photographs to fit on, and every fourth to judge on."""
    judged = torch.zeros(len(images), dtype=torch.bool)
    judged[EVERY - 1 :: EVERY] = True
    return Pictures(images[~judged]), images[judged]


def has_weights(reference: str) -> bool:
    """Whether the model that a reference names has learnt something."""
    found = read(reference)
    return found.kind == "path" or found.options.get("pretrained") is True


@torch.no_grad()
def settle_(model: nn.Module, given: Pictures) -> None:
    """Give BatchNorms the statistics of some photographs: the plain mean over batches."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for batch in given:
        model(batch)
    model.eval()


def measured(dense: nn.Module, steps: Plan, given: Pictures, judged: Tensor, *, trained: bool) -> dict[str, Any]:
    """Errors of a projection and of a fit, and what the fit took."""
    row: dict[str, Any] = {
        "layers": len(steps.swapped), "macs": steps.after.macs, "dense_macs": steps.before.macs,
        "fit_images": len(given.images), "judged_images": len(judged), "trained": trained,
    }  # fmt: skip
    for init in ("project", "fit"):
        model = copy.deepcopy(dense)
        held, cpu, wall = _peak_mib(), time.process_time(), time.perf_counter()
        applied = apply_(model, steps, init=init, data=given if init == "fit" else None)
        if init == "fit":
            row["fit_cpu_seconds"] = time.process_time() - cpu
            row["fit_seconds"] = time.perf_counter() - wall
            row["peak_mib_added"] = _peak_mib() - held
            row["layer_errors"] = [[layer.name, layer.error_before, layer.error] for layer in applied.layers]
        row[init] = errors(model, dense, judged)
        row[f"{init}_agreement"] = agreement(model, dense, judged) if trained else None
    row["features"] = list(row["fit"])
    return row


@torch.no_grad()
def errors(model: nn.Module, dense: nn.Module, judged: Tensor) -> dict[str, float]:
    """‖model - dense‖ / ‖dense‖ of each block around swapped layers, and of the output."""
    names = swapped_blocks(model, dense)
    taps = [Taps(each, names, always=True) for each in (model, dense)]
    sums: dict[str, list[float]] = {}
    for part in judged.split(BATCH):
        x = to_float(part)
        outputs = [model(x), dense(x)]
        found = [tap.take() | {OUTPUT: [output]} for tap, output in zip(taps, outputs, strict=True)]
        for name in found[0]:
            own, theirs = (torch.cat([t.flatten() for t in each[name]]).double() for each in found)
            total = sums.setdefault(name, [0.0, 0.0])
            total[0] += float((own - theirs).square().sum())
            total[1] += float(theirs.square().sum())
    for tap in taps:
        tap.close()
    return {name: (rest / scale) ** 0.5 if scale else 0.0 for name, (rest, scale) in sums.items()}


@torch.no_grad()
def agreement(model: nn.Module, dense: nn.Module, judged: Tensor) -> float:
    """The share of photographs on which both have the same largest output."""
    same = [model(to_float(part)).argmax(1) == dense(to_float(part)).argmax(1) for part in judged.split(BATCH)]
    return float(torch.cat(same).double().mean())


def _peak_mib() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(row: dict[str, Any]) -> str:
    """Format the table of a row."""
    cells: list[Sequence[object]] = [
        [name, f"{row['project'][name]:.3f}", f"{row['fit'][name]:.3f}"] for name in row["fit"]
    ]
    note = [
        f"{row['model']}, {'trained' if row['trained'] else 'random'} weights: {row['operator']} in {row['layers']} "
        f"layers, {si(row['dense_macs'])} -> {si(row['macs'])} MACs",
        f"‖lean - dense‖ / ‖dense‖ on {row['judged_images']} photographs of {row['size']} px; the fit saw "
        f"{row['fit_images']} others and took {row['fit_cpu_seconds']:.0f} s of a core",
    ]
    if row["trained"]:
        note.append(f"same top-1: projected {row['project_agreement']:.1%}, fitted {row['fit_agreement']:.1%}")
    return table(["block", "projected", "fitted"], cells, note=[*note, str(row["machine"])])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", default="timm:resnet18?zero_init_last=false")
    parser.add_argument("--to", default="hetconv(part=4)", help="operator string")
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--images", type=int, default=120, help="in all; every fourth is judged")
    parser.add_argument("--split", default="test", help="of the data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default=str(RESULTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
