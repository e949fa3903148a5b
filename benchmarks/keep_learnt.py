"""How much of a trained classifier is left right after a uniform swap: fresh, projected, fitted on unlabelled images.

    python -m benchmarks.keep_learnt RUN DATA [--recover "hetconv(part=4)"] [--recover-fresh "hetconv(part=4)"]

RUN: the run folder of a trained network. DATA: its data (CIFAR-10 as Parquet, "DIR?val=0"). All convolutions that the
operator replaces are swapped, except the first. A fit sees `--images` training images without their labels. Nothing is
trained, but for the operators that `--recover` names: for them the recipe `recover` runs for one epoch, from the fitted
network, which is kept under `--runs`. For those of `--recover-fresh` the same recipe runs from fresh layers. Beside the
operators stands Tucker-2 (`benchmarks/baselines.py`), fitted on the same images. Top-1 is of
`--test` test images, spread evenly over the split; after an epoch of all of them. Every finished operator updates
benchmarks/results/keep_learnt.json; a killed benchmark goes on where it stopped. Figures of another network, and of
other code of the fit, the operator or the recovery, are measured again.
"""

import argparse
import copy
import hashlib
import inspect
import json
import re
import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import register_baselines
from leanconv import recipes
from leanconv.convert import Applied, Plan, apply_, plan
from leanconv.files import read_json, write_json
from leanconv.measure.device import describe
from leanconv.nn import quiet_gates, starts
from leanconv.planner.lean.subject import write_version
from leanconv.registry import get, names, parse
from leanconv.runs import RunFolder, load
from leanconv.runs.digest import of_model
from leanconv.table import si, table
from leanconv.train.data.augment import to_float
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.calibration import Pictures, pictures

RESULTS = Path(__file__).parent / "results" / "keep_learnt.json"
FIRST = (
    "hetconv(part=4)", "depthwise_separable", "depthwise_separable(multiplier=2)", "depthwise_separable(multiplier=3)",
    "depthwise_separable(multiplier=4)", "sic", "splconv", "spconv", "group_pointwise(part=4)", "psconv",
    "lhconv", "xsepconv", "spatial_bottleneck", "odconv", "doconv", "gmconv",
)  # fmt: skip
BASELINES = ("tucker2(share=0.45)",)
BATCH = 100
PACKAGE = Path(starts.__file__).parents[1]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    size = arguments.size
    given = pictures(arguments.data, size, arguments.images)
    images, labels = _judged(arguments.data, size, arguments.test)
    dense = load(arguments.run).eval()
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.keep_learnt", "RUN", "DATA", *_said(arguments.words)]),
        "machine": describe(),
        "threads": arguments.threads,
        "network": _network(arguments.run) | {"weights": of_model(dense)},
        "fit_images": len(given.images),
        "test_images": len(labels),
        "dense": {"top1": top1(dense, images, labels)},
        "rows": [],
    }
    path = Path(arguments.out)
    if path.exists() and all(read_json(path).get(key) == report[key] for key in ("network", "fit_images", "dense")):
        report["rows"] = read_json(path)["rows"]
    rows = {row["operator"]: row for row in report["rows"]}
    for operator in arguments.operators or operators():
        place = _folder(arguments.runs, operator, "fitted")
        done = rows.get(operator, {}).get("code") == fit_code(operator)
        if done and (operator not in arguments.recover or place.is_dir()):
            continue
        steps = plan(dense, given.images[:1].float(), to=operator)
        if steps.swapped:
            rows[operator], fitted = kept(dense, steps, operator, given, images, labels)
            write_version(RunFolder(place), RunFolder(Path(arguments.run)), fitted, steps)
            report["rows"] = list(rows.values())
            write_json(path, report)
            print(f"{operator}: {rows[operator]}", flush=True)
    for init, asked in (("fit", arguments.recover), ("fresh", arguments.recover_fresh)):
        for operator in asked:
            row, code = rows.get(operator), recovery_code(operator)
            if row is not None and row.get(f"recovered_{init}", {}).get("code") != code:
                start = [f"swap={operator}", "init=fresh"]
                if init == "fit":
                    start = ["swap=", "init=project", f"model={_folder(arguments.runs, operator, 'fitted')}"]
                out = _folder(arguments.runs, operator, f"{init}-{code}")
                row[f"recovered_{init}"] = recovered(arguments.run, start, out, arguments.words) | {"code": code}
                write_json(path, report)
                print(f"{operator}: {row[f'recovered_{init}']}", flush=True)
    write_json(path, report)
    print(show(report))


def recovered(run: str, start: list[str], out: Path, words: list[str]) -> dict[str, Any]:
    """Top-1 on all test images after one epoch of the recipe `recover`, which goes on where it was stopped."""
    values = {key: value for key, value in recipes.read("recover").items() if key != "fit_images"}
    words = [f"teacher={run}", *start, f"out={out}", "epochs=1", *words]
    folder = fit(Recipe.of(values, words), resume=(out / "last").is_dir())
    metrics = read_json(folder.metrics)
    return {"top1": metrics["test"]["top1"], "steps": metrics["steps"], "seconds": metrics["seconds"]}


def _said(words: list[str]) -> list[str]:
    return ["--words", *words] if words else []


def _folder(runs: str, operator: str, name: str) -> Path:
    return Path(runs) / "-".join([re.sub(r"\W+", "-", operator), name])


def fit_code(operator: str) -> str:
    """A digest of the sources that a fit of this operator runs."""
    own = inspect.getsourcefile(get(parse(operator)[0]))
    others = PACKAGE / "muon.py", Path(starts.__file__), Path(quiet_gates.__file__)
    return _digest([*sorted((PACKAGE / "convert" / "fit").glob("*.py")), *others, Path(str(own))])


def recovery_code(operator: str) -> str:
    """A digest of the same, of the recipe `recover`, and of the sources of distillation and optimizers."""
    settings, train = json.dumps(recipes.read("recover"), sort_keys=True), PACKAGE / "train"
    files = [*sorted((train / "distillation").glob("*.py")), train / "optimizer.py"]
    return _digest(files, fit_code(operator), settings)


def _digest(files: Iterable[Path], *words: str) -> str:
    parts = [file.read_bytes() for file in files] + [word.encode() for word in words]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _arguments() -> argparse.Namespace:
    register_baselines()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--images", type=int, default=500, help="that a fit sees")
    parser.add_argument("--test", type=int, default=2000, help="images that are scored")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--operators", nargs="+", help="operator strings (default: all, and the baselines)")
    parser.add_argument("--recover", nargs="+", default=[], help="operators that are trained for an epoch, too")
    parser.add_argument("--recover-fresh", nargs="+", default=[], help="the same from fresh layers")
    parser.add_argument("--words", nargs="+", default=[], help="settings of these trainings, amp=bf16")
    parser.add_argument("--runs", default="runs/benchmarks/keep_learnt", help="folder of these trainings")
    parser.add_argument("--out", default=str(RESULTS))
    return parser.parse_args()


def operators() -> list[str]:
    """Every registered operator; those of the issue's table first, the baselines last."""
    known = {operator.split("(")[0] for operator in (*FIRST, *BASELINES)}
    return [*FIRST, *(name for name in names() if name not in known and name != "conv"), *BASELINES]


def kept(
    dense: nn.Module, steps: Plan, operator: str, given: Pictures, images: Tensor, labels: Tensor
) -> tuple[dict[str, Any], nn.Module]:
    """One operator in place of all that it replaces: top-1 for each start, what the fit took; the fitted network."""
    row: dict[str, Any] = {
        "operator": operator, "layers": len(steps.swapped), "macs": steps.after.macs, "dense_macs": steps.before.macs,
        "code": fit_code(operator),
    }  # fmt: skip
    for init in ("fresh", "project", "fit"):
        model = copy.deepcopy(dense)
        torch.manual_seed(0)
        started, cpu = time.perf_counter(), time.process_time()
        applied: Applied = apply_(model, steps, init=init, data=given if init == "fit" else None)
        if init == "fit":
            row["fit_seconds"] = time.perf_counter() - started
            row["fit_cpu_seconds"] = time.process_time() - cpu
            row["output_error"] = applied.output_error
        row[init] = top1(model, images, labels)
    return row, model


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose label has the largest output."""
    model.eval()
    right = [model(to_float(part)).argmax(1) == truth for part, truth in zip(images.split(BATCH), labels.split(BATCH))]
    return float(torch.cat(right).double().mean())


def _judged(data: str, size: int, count: int) -> tuple[Tensor, Tensor]:
    test = open_labelled(data, "test", size=size)
    places = torch.linspace(0, len(test) - 1, min(count, len(test))).round().long()
    return torch.stack([test.square(int(place)) for place in places]), test.labels[places]


def _network(run: str) -> dict[str, Any]:
    """The network and how far its training is."""
    lines = (Path(run) / "history.csv").read_text().strip().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    return {"reference": read_json(Path(run) / "model.json")["reference"], "epochs": int(last["epoch"])}


def show(report: dict[str, Any]) -> str:
    """Format the table of a report."""
    rows = [
        [row["operator"], row["layers"], si(row["macs"])]
        + [f"{100 * row[init]:.1f}" for init in ("fresh", "project", "fit")]
        + [f"{row['fit_cpu_seconds']:.0f}", *(_after_epoch(row, init) for init in ("fit", "fresh"))]
        for row in report["rows"]
    ]
    note = [
        f"{report['network']['reference']} after {report['network']['epochs']} epochs: top-1 "
        f"{100 * report['dense']['top1']:.1f} % of {report['test_images']} test images; a fit saw "
        f"{report['fit_images']} training images",
        str(report["machine"]),
    ]
    head = ["operator", "layers", "MACs", "fresh %", "project %", "fit %", "CPU s", "an epoch %", "from fresh %"]
    return table(head, rows, note=note)


def _after_epoch(row: dict[str, Any], init: str) -> str:
    found = row.get(f"recovered_{init}")
    return f"{100 * found['top1']:.1f}" if found else "-"


if __name__ == "__main__":
    main()
