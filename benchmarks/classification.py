"""Compare the operators on CIFAR-10, with equal short budgets in the same network: accuracy, params, MACs, images/s.

    python -m benchmarks.classification "DIR?val=0"

DIR: CIFAR-10 as Parquet splits or class folders, or torchvision:CIFAR10?root=DIR&val=0. Every run is a separate
`leanconv train` on one thread, `--jobs` at a time. A killed benchmark can be continued. Every finished run updates
benchmarks/results/NAME.json. After all runs, forward passes and training steps are timed in turns, in processor time of
one thread. `--only-steps N` tries N steps of each, estimates the time of a run, and stores nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from leanconv.files import read_json, write_json
from leanconv.measure.counting.count import count
from leanconv.measure.device import describe
from leanconv.measure.timing.side_by_side import compare
from leanconv.measure.timing.training import compare_training
from leanconv.runs import load
from leanconv.table import si, table
from leanconv.train.data.batches import Order
from leanconv.train.data.crops import Crops, memory_batches
from leanconv.train.data.labelled import Labelled, Part
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.optimizer import make_optimizer
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.classify import Classification

RESULTS = Path(__file__).parent / "results"
RECIPE = "cifar10_short"
NETWORK = "leanconv:vgg16_cifar?width=0.25"
OPERATORS = (
    "conv", "group_pointwise(part=4)", "depthwise_separable", "hetconv(part=4)", "spconv", "splconv", "odconv",
    "psconv", "doconv", "gmconv", "sic",
)  # fmt: skip
FORWARD_BATCH, STEP_BATCH = 64, 128


def main() -> None:
    arguments = _arguments()
    operators = arguments.operators or OPERATORS
    if arguments.only_steps:
        estimate(arguments, operators)
        return
    jobs = [(operator, seed) for seed in arguments.seeds for operator in operators]
    report: dict[str, Any] = {}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (operator, seed), failed in zip(jobs, pool.map(lambda job: _train(arguments, *job), jobs), strict=True):
            print(f"{operator}, seed {seed}: {failed or 'done'}", file=sys.stderr)
            report = collect(arguments)
            write_json(RESULTS / f"{arguments.name}.json", report)
    if report.get("rows") and not arguments.no_timing:
        write_json(RESULTS / f"{arguments.name}.json", report | {"speed": speed(report, arguments.budget)})
    print(show(read_json(RESULTS / f"{arguments.name}.json")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("words", nargs="*", help="recipe keys for every run, key=value")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--network", default=NETWORK, help="the network, without its conv=")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--operators", nargs="+", help="operator strings (default: all in this file)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each of the two timings")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument(
        "--only-steps",
        type=int,
        default=0,
        metavar="N",
        help="only try N steps of each operator, and estimate the time of all runs",
    )
    parser.add_argument("--name", default="classification_cifar10", help="name of the results file")
    parser.add_argument("--out", default="runs/benchmarks", help="folder of the run folders")
    return parser.parse_intermixed_args()


def reference(network: str, operator: str) -> str:
    """Return the reference of the network built from an operator."""
    return f"{network}{'&' if '?' in network else '?'}conv={operator}"


def folder(arguments: argparse.Namespace, operator: str, seed: int) -> Path:
    """Return the run folder of one operator and seed."""
    word = "".join(letter if letter.isalnum() else "-" for letter in operator.lower()).strip("-")
    return Path(arguments.out) / arguments.name / f"{word}-seed{seed}"


def _train(arguments: argparse.Namespace, operator: str, seed: int) -> str:
    """Run one training to its end. Returns "" or why it failed."""
    run = folder(arguments, operator, seed)
    if (run / "metrics.json").exists():
        return ""
    words = [
        f"model={reference(arguments.network, operator)}", f"data={arguments.data}", f"seed={seed}", f"out={run}",
        "threads=1", "device=cpu", *arguments.words,
    ]  # fmt: skip
    return _run([str(run), "--resume"] if (run / "recipe.toml").exists() else [arguments.recipe, *words], operator)


def estimate(arguments: argparse.Namespace, operators: Sequence[str]) -> None:
    """Run a few steps of each operator on some training images. Print the loss and the estimated time of a run."""
    torch.set_num_threads(1)
    recipe = Recipe.read(arguments.recipe, arguments.words)
    samples = open_labelled(arguments.data, "train", size=recipe.size)
    whole = recipe.steps or recipe.epochs * (len(samples) // recipe.batch)
    count = recipe.batch * 4
    samples = Labelled(Part(samples.source, range(0, len(samples), len(samples) // count)[:count]), samples.classes, 32)
    samples.check(progress=False)
    for operator in operators:
        torch.manual_seed(0)
        model = load(reference(arguments.network, operator)).to(memory_format=torch.channels_last)
        optimizer, losses, times = make_optimizer(model, recipe), [], []
        task, order = Classification(samples.classes), Order(len(samples), recipe.batch, 0)
        for images, labels in memory_batches(samples, Crops(recipe.size), order, 0, arguments.only_steps):
            before = time.thread_time()
            loss = task.loss(model(images.contiguous(memory_format=torch.channels_last)), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.thread_time() - before)
            losses.append(float(loss.detach()))
        step = statistics.median(times)
        print(
            f"{operator}: loss {losses[0]:.3f} to {losses[-1]:.3f}, {1e3 * step:.0f} ms of CPU a step, "
            f"{whole * step / 60:.1f} CPU-min for {whole} steps",
            flush=True,
        )


def _run(words: list[str], operator: str) -> str:
    started = time.monotonic()
    command = [sys.executable, "-m", "leanconv", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(f"{operator}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def collect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute mean and spread over the finished seeds of every operator."""
    rows, images = [], 0
    recipe = Recipe.read(arguments.recipe, arguments.words)
    for operator in dict.fromkeys([*OPERATORS, *(arguments.operators or ())]):
        name = reference(arguments.network, operator)
        runs = [run for seed in arguments.seeds if (run := folder(arguments, operator, seed) / "metrics.json").exists()]
        if not runs:
            continue
        metrics = [read_json(run) for run in runs]
        images = metrics[0]["test"]["images"]
        cost = count(load(name), torch.zeros(1, 3, recipe.size, recipe.size), "macs")
        row: dict[str, Any] = {
            "operator": operator, "reference": name, "seeds": len(runs), "params": cost.params, "macs": cost.flops,
            "steps": metrics[0]["steps"], "train_seconds": statistics.median(each["seconds"] for each in metrics),
        }  # fmt: skip
        for score in ("top1", "top5"):
            values = [each["test"][score] for each in metrics]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[score] = {"mean": statistics.fmean(values), "stdev": spread, "values": values}
        rows.append(row)
    command = " ".join(["python -m benchmarks.classification DIR?val=0", *arguments.words])
    return {
        "command": command,
        "recipe": arguments.recipe,
        "network": arguments.network,
        "machine": describe(),
        "jobs": arguments.jobs,
        "batch": recipe.batch,
        "epochs": recipe.epochs,
        "split": "test",
        "images": images,
        "rows": rows,
    }


def speed(report: dict[str, Any], budget_s: float) -> dict[str, Any]:
    """Time forward passes and training steps of the trained operators in turns, channels_last, on one thread."""
    torch.set_num_threads(1)
    names = [row["operator"] for row in report["rows"]]
    models = {row["operator"]: load(row["reference"]) for row in report["rows"]}
    last = torch.channels_last
    eval_models = {
        name: load(row["reference"]).eval().to(memory_format=last) for name, row in zip(names, report["rows"])
    }
    images = torch.randn(FORWARD_BATCH, 3, 32, 32).contiguous(memory_format=last)
    forward = compare(eval_models, images, budget_s=budget_s, clock="cpu")
    steps = compare_training(
        models, torch.randn(STEP_BATCH, 3, 32, 32), settings=["channels_last"], budget_s=budget_s, clock="cpu"
    )
    return {
        "clock": "cpu time of the one thread, the models in turns",
        "layout": "channels_last",
        "dtype": "float32",
        "forward": {"batch": FORWARD_BATCH, "images_per_s": {entry.name: entry.fps for entry in forward.entries}},
        "train": {
            "batch": STEP_BATCH,
            "images_per_s": {step.name: 1e3 * STEP_BATCH / step.timing.median_ms for step in steps.steps},
        },
    }


def show(report: dict[str, Any]) -> str:
    """Format the table of a report."""
    kinds = ("forward", "train")
    fast = {kind: report.get("speed", {}).get(kind, {}).get("images_per_s", {}) for kind in kinds}
    rows = []
    for row in report["rows"]:
        mean, spread, name = row["top1"]["mean"], row["top1"]["stdev"], row["operator"]
        speeds = [f"{fast[kind][name]:.0f}" if name in fast[kind] else "-" for kind in kinds]
        top1 = f"{mean:.4f}" + (f" ±{spread:.4f}" if spread is not None else "")
        top5, minutes = f"{row['top5']['mean']:.4f}", f"{row['train_seconds'] / 60:.1f}"
        rows.append([name, si(row["params"]), si(row["macs"]), top1, top5, row["seeds"], minutes, *speeds])
    columns = ["operator", "params", "MACs", "top-1", "top-5", "seeds", "min/run", "forward img/s", "train img/s"]
    note = (
        f"{report['network']}, {report['epochs']} epochs of all training images, {report['images']} test images\n"
        f"{report['command']}\n{json.dumps(report['machine'])}"
    )
    return table(columns, rows, note=note)


if __name__ == "__main__":
    main()
