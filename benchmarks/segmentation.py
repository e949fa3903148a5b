"""Repeat the SPLConv paper's comparison on real images: equal budgets for every convolution, several seeds.

    python -m benchmarks.segmentation wafer DATA --seeds 0 1 --jobs 2

Every run is a separate `leanconv train` on one thread, `--jobs` at a time. A killed benchmark can be continued. Every
finished run updates benchmarks/results/NAME.json. The table is printed at the end.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from leanconv.files import read_json, write_json
from leanconv.measure.counting.count import count
from leanconv.measure.device import describe
from leanconv.runs import load
from leanconv.table import si, table

RESULTS = Path(__file__).parent / "results"

# name -> options of the recipe's model reference, and the paper's figures (mean IoU, Dice; its tables 1 and 2).
MODELS: dict[str, tuple[str, tuple[float, float] | None]] = {
    "U-Net": ("conv=conv", (0.6012, 0.7139)),
    "depthwise-separable": ("conv=depthwise_separable", None),
    "depthwise-separable, encoder only": ("conv=depthwise_separable&part=encoder", (0.6019, 0.7138)),
    "SPConv": ("conv=spconv", (0.6266, 0.7383)),
    "SPLConv .5": ("conv=splconv(alpha=0.5)", (0.6285, 0.7423)),
    "SPLConv .75": ("conv=splconv(alpha=0.75)", (0.6513, 0.7576)),
    "SPLConv .5, encoder only": ("conv=splconv(alpha=0.5)&part=encoder", (0.6345, 0.7448)),
    "SPLConv .5 without depthwise": ("conv=splconv(alpha=0.5, depthwise=False)", (0.6015, 0.7295)),
    "SPLConv .5 without dilated": ("conv=splconv(alpha=0.5, dilated=False)", (0.5800, 0.6993)),
    "HetConv P=4": ("conv=hetconv(part=4)", None),
}
SCORES = ("image_iou", "image_dice", "iou", "dice", "mean_iou")


def main() -> None:
    arguments = _arguments()
    out = Path(arguments.out) / arguments.name
    jobs = [(name, seed) for seed in arguments.seeds for name in arguments.models or MODELS]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (name, seed), failed in zip(jobs, pool.map(lambda job: _train(arguments, out, *job), jobs), strict=True):
            print(f"{name}, seed {seed}: {failed or 'done'}", file=sys.stderr)
            report = collect(arguments, out)
            write_json(RESULTS / f"{arguments.name}.json", report)
    print(show(report))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("data")
    parser.add_argument("words", nargs="*", help="recipe keys for every run, key=value")
    parser.add_argument("--base", default="leanconv:unet?base=8", help="the network, without its conv=")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--name", default="segmentation_wafer", help="name of the results file")
    parser.add_argument("--out", default="runs/benchmarks", help="folder of the run folders")
    return parser.parse_intermixed_args()


def folder(out: Path, name: str, seed: int) -> Path:
    """Return the run folder of one model and seed."""
    word = "".join(letter if letter.isalnum() else "-" for letter in name.lower())
    return out / f"{word}-seed{seed}"


def _train(arguments: argparse.Namespace, out: Path, name: str, seed: int) -> str:
    """Run one training to its end. Returns "" or why it failed."""
    run = folder(out, name, seed)
    if (run / "metrics.json").exists():
        return ""
    words = [
        f"model={arguments.base}&{MODELS[name][0]}", f"data={arguments.data}", f"seed={seed}", f"out={run}",
        "threads=1", *arguments.words,
    ]  # fmt: skip
    resumed = (run / "recipe.toml").exists()
    command = [str(run), "--resume"] if resumed else [arguments.recipe, *words]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "leanconv", "train", *command], capture_output=True, text=True, check=False
    )
    print(f"{name}, seed {seed}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def collect(arguments: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Compute mean and spread over the finished seeds of every model."""
    rows = []
    for name, (words, paper) in MODELS.items():
        reference = f"{arguments.base}&{words}"
        runs = [run for seed in arguments.seeds if (run := folder(out, name, seed) / "metrics.json").exists()]
        if not runs:
            continue
        metrics = [read_json(run) for run in runs]
        cost = count(load(reference), torch.zeros(1, 3, 128, 128), "macs_weights")
        row: dict[str, Any] = {
            "model": name, "reference": reference, "seeds": len(runs), "params": cost.params, "macs_128px": cost.flops,
            "train_seconds": statistics.median(each["seconds"] for each in metrics),
            "paper": paper and dict(zip(("mean_iou", "dice"), paper, strict=True)),
        }  # fmt: skip
        for score in SCORES:
            values = [each["test"][score] for each in metrics]
            spread = statistics.stdev(values) if len(values) > 1 else None
            row[score] = {"mean": statistics.fmean(values), "stdev": spread, "values": values}
        rows.append(row)
    options = "".join(arguments.data.partition("?")[1:])
    data = f"'DATA{options}'" if options else "DATA"
    words = [arguments.recipe, data, *arguments.words, "--base", repr(arguments.base), "--seeds"]
    command = " ".join(["python -m benchmarks.segmentation", *words, *map(str, arguments.seeds)])
    return {"command": command, "machine": describe(), "jobs": arguments.jobs, "split": "test", "rows": rows}


def show(report: dict[str, Any]) -> str:
    """Format the table of a report, with the paper's figures and ours."""

    def figure(row: dict[str, Any], score: str) -> str:
        mean, spread = row[score]["mean"], row[score]["stdev"]
        return f"{mean:.4f}" + (f" ±{spread:.4f}" if spread is not None else "")

    rows = [
        [
            row["model"],
            si(row["params"]),
            si(row["macs_128px"]),
            figure(row, "image_iou"),
            figure(row, "image_dice"),
            figure(row, "dice"),
            row["seeds"],
            f"{row['train_seconds'] / 60:.1f}",
            *((f"{row['paper']['mean_iou']:.4f}", f"{row['paper']['dice']:.4f}") if row["paper"] else ("-", "-")),
        ]
        for row in report["rows"]
    ]
    columns = [
        "model", "params", "MACs 128 px", "IoU (per image)", "Dice (per image)", "Dice (all pixels)", "seeds",
        "min/run", "paper IoU", "paper Dice",
    ]  # fmt: skip
    return table(columns, rows, note=f"{report['command']}\n{json.dumps(report['machine'])}")


if __name__ == "__main__":
    main()
