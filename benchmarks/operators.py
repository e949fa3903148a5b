"""Compare every registered operator with the dense convolution it replaces: layer by layer, then as a whole U-Net.

    python -m benchmarks.operators [--quick] [--threads 1] [--compile conv splconv ...] [--resume] [--minutes 10]

The tables show inference and training step (forward, backward, SGD) in eager and channels_last. They also show the
step's peak memory, parameters and MACs. All candidates of one table are timed in turns in one process: read the ratios,
not the times. With one thread (the default), the clock is processor time, so other processes matter little. Every
table is written to benchmarks/results/operators_cpu.json at once. `--resume` continues a stopped run, and `--minutes`
starts no table after that time.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import command_of
from leanconv.files import write_json
from leanconv.measure import Comparison, compare
from leanconv.measure.counting.count import count
from leanconv.measure.device import describe, label
from leanconv.measure.timing.latency import Timing, interleave
from leanconv.measure.timing.training import TrainingComparison, TrainingStep, compare_training
from leanconv.models.unet import unet
from leanconv.nn import get, make, names, parse
from leanconv.spec import ConvSpec
from leanconv.table import si, table

OUT = Path(__file__).parent / "results" / "operators_cpu.json"

# The 3x3 layers of a U-Net of base 32 at 256 px, and of ResNet-18/34 and VGG-16 at 224 px. Then depthwise layers
# (ConvNeXt-like, MobileNetV3-like) and a 1x1 (ResNet-50).
LAYERS = {
    "U-Net encoder 1": ConvSpec.of(32, 32, 3, 1, 1, bias=False, h=256, w=256),
    "U-Net encoder 2": ConvSpec.of(64, 64, 3, 1, 1, bias=False, h=128, w=128),
    "U-Net encoder 3": ConvSpec.of(128, 128, 3, 1, 1, bias=False, h=64, w=64),
    "U-Net encoder 4": ConvSpec.of(256, 256, 3, 1, 1, bias=False, h=32, w=32),
    "U-Net bottleneck": ConvSpec.of(512, 512, 3, 1, 1, bias=False, h=16, w=16),
    "U-Net decoder 3": ConvSpec.of(256, 128, 3, 1, 1, bias=False, h=64, w=64),
    "U-Net decoder 1": ConvSpec.of(64, 32, 3, 1, 1, bias=False, h=256, w=256),
    "ResNet stage 1": ConvSpec.of(64, 64, 3, 1, 1, bias=False, h=56, w=56),
    "ResNet stage 3, stride 2": ConvSpec.of(128, 256, 3, 2, 1, bias=False, h=28, w=28),
    "ResNet stage 4": ConvSpec.of(512, 512, 3, 1, 1, bias=False, h=7, w=7),
    "VGG block 2": ConvSpec.of(64, 128, 3, 1, 1, bias=True, h=112, w=112),
    "VGG block 4": ConvSpec.of(512, 512, 3, 1, 1, bias=True, h=28, w=28),
    "depthwise 7x7": ConvSpec.of(96, 96, 7, 1, 3, groups=96, h=56, w=56),
    "depthwise 5x5": ConvSpec.of(240, 240, 5, 1, 2, groups=240, bias=False, h=14, w=14),
    "1x1": ConvSpec.of(256, 64, 1, bias=False, h=56, w=56),
}
QUICK_LAYERS = {
    "U-Net encoder 4": LAYERS["U-Net encoder 4"],
    "depthwise 5x5": LAYERS["depthwise 5x5"],
    "1x1": ConvSpec.of(64, 64, 1, bias=False, h=28, w=28),
}
# Operator strings in addition to the plain names, which have default options.
MORE = ["splconv(alpha=0.75)", "hetconv(part=8)"]
LAYOUTS = ("eager", "channels_last")
# Networks for torch.compile, which takes a minute for each.
COMPILED = ["conv", "depthwise_separable", "spconv", "splconv", "hetconv"]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    report = _report(arguments)
    tables = [*_layer_tables(report, arguments), *_network_tables(report, arguments)]
    start = time.perf_counter()
    for i, (what, measure) in enumerate(tables):
        spent = time.perf_counter() - start
        if spent > 60 * arguments.minutes:
            print(f"{len(tables) - i} tables left: --resume goes on with {what}")
            break
        print(f"{i + 1} of {len(tables)}: {what}; {spent / 60:.1f} minutes so far", file=sys.stderr, flush=True)
        text = measure()
        _save(arguments.out, report)
        print(text, end="\n\n", flush=True)


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return an empty report, or the report of a stopped run with this commit and these settings."""
    report: dict[str, Any] = {
        "command": command_of("operators"), "commit": commit(),
        "device": describe("cpu"), "clock": _timing(arguments)["clock"], "quick": arguments.quick, "layers": [],
        "networks": [],
    }  # fmt: skip
    if not (arguments.resume and arguments.out and arguments.out.exists()):
        return report
    old = json.loads(arguments.out.read_text())
    for key in ("device", "clock", "quick", *(() if arguments.any_commit else ("commit",))):
        if old.get(key) != report[key]:
            print(f"{arguments.out} has another {key}: starting a new table")
            return report
    return report | {"layers": old["layers"], "networks": old["networks"]}


def _layer_tables(report: dict[str, Any], arguments: argparse.Namespace) -> list[tuple[str, Callable[[], str]]]:
    """Return the layers that the report lacks: the name, and a function that measures it into the report."""

    def measure(place: str, spec: ConvSpec) -> str:
        rows = [row | {"commit": report["commit"]} for row in layer_rows(place, spec, arguments)]
        report["layers"] += rows
        return show_layer(place, spec, rows, arguments.batch)

    layers = QUICK_LAYERS if arguments.quick else LAYERS
    done = {row["layer"] for row in report["layers"]}
    return [
        (place, partial(measure, place, spec))
        for place, spec in layers.items()
        if place not in done and (arguments.layers is None or place in arguments.layers)
    ]


def _network_tables(report: dict[str, Any], arguments: argparse.Namespace) -> list[tuple[str, Callable[[], str]]]:
    """Return the network's tables that the report lacks, in the same form."""

    def measure(kind: str, table_of: Callable[[], Comparison | TrainingComparison]) -> str:
        found = table_of()
        report["networks"].append({"network": title, "table": kind, "commit": report["commit"], **found.to_dict()})
        return f"{title}, {kind}\n{found}"

    title, tables = network_tables(arguments)
    done = {row["table"] for row in report["networks"]}
    return [(f"{title}, {kind}", partial(measure, kind, run)) for kind, run in tables.items() if kind not in done]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three layers, a small U-Net, no compilation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, help="seconds of timing per table; default 8, quick 1")
    parser.add_argument("--rounds", type=int, default=5, help="fewest rounds, whatever they take")
    parser.add_argument("--layers", nargs="*", help="only these (default: all)")
    parser.add_argument("--batch", type=int, default=4, help="batch of a layer's training step")
    parser.add_argument("--operators", nargs="*", help="default: all registered ones")
    parser.add_argument(
        "--compile", nargs="*", help=f"networks to time with torch.compile too; default {' '.join(COMPILED)}"
    )
    parser.add_argument("--resume", action="store_true", help="keep the tables that --out has, measure the others")
    parser.add_argument("--any-commit", action="store_true", help="--resume keeps the tables of other commits too")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no table after this many minutes")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/operators_cpu.json; with --quick: none")
    arguments = parser.parse_args()
    arguments.budget = arguments.budget or (1.0 if arguments.quick else 8.0)
    arguments.compile = ([] if arguments.quick else COMPILED) if arguments.compile is None else arguments.compile
    if arguments.out is None and not arguments.quick:
        arguments.out = OUT
    return arguments


def _timing(arguments: argparse.Namespace, times: float = 1) -> dict[str, Any]:
    clock = "cpu" if arguments.threads == 1 else "wall"
    return {"budget_s": times * arguments.budget, "min_rounds": arguments.rounds, "clock": clock}


def _save(path: Path | None, report: dict[str, Any]) -> None:
    if path is not None:
        write_json(path, report)


def operators(spec: ConvSpec, asked: list[str] | None) -> list[str]:
    """Return the operator strings that can replace a layer, the plain convolution first."""
    found = []
    for text in asked or [*names(), *MORE]:
        name, options = parse(text)
        if spec.kind in get(name).replaces and not get(name).why_not(spec, **options):
            found.append(text)
    return ["conv", *(text for text in found if text != "conv")]


def layer_rows(place: str, spec: ConvSpec, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one row per operator: counts, times in both layouts, and their ratios to the dense layer's."""
    chosen = operators(spec, arguments.operators)
    modules = {text: nn.Sequential(make(text, **spec.arguments())) for text in chosen}
    image, batch = spec.input(), torch.randn(arguments.batch, spec.c, spec.h, spec.w, requires_grad=True)
    calls = {f"{text} {layout}": forward(modules[text], image, layout) for text in chosen for layout in LAYOUTS}
    inference = interleave(calls, **_timing(arguments))
    steps = {f"{text} {layout}": TrainingStep(modules[text], batch, layout) for text in chosen for layout in LAYOUTS}
    training = interleave(steps, **_timing(arguments))
    rows = []
    for text in chosen:
        cost = count(modules[text], image)
        row: dict[str, Any] = {
            "layer": place, "spec": str(spec), "input": [1, spec.c, spec.h, spec.w], "operator": text,
            "params": cost.params, "macs": cost.flops, "launches": cost.launches, "train_batch": arguments.batch,
        }  # fmt: skip
        for layout in LAYOUTS:
            row[f"inference {layout}"] = against(inference, text, layout)
            row[f"training {layout}"] = against(training, text, layout)
            row[f"training {layout}"]["peak_bytes"] = steps[f"{text} {layout}"].peak_bytes()
        rows.append(row)
    return rows


def forward(model: nn.Module, x: torch.Tensor, layout: str) -> Callable[[], object]:
    """Return the inference call of a layer in one layout."""
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    fixed = TrainingStep(model, x, layout).model.eval()  # a copy in that layout

    @torch.no_grad()
    def call() -> object:
        return fixed(x)

    return call


def against(timings: dict[str, Timing], text: str, layout: str) -> dict[str, Any]:
    """Return a timing and its ratio to the dense convolution in the same layout (above 1: faster than dense)."""
    own, dense = timings[f"{text} {layout}"], timings[f"conv {layout}"]
    return {**own.to_dict(), "speedup": dense.median_ms / own.median_ms}


def show_layer(place: str, spec: ConvSpec, rows: list[dict[str, Any]], batch: int) -> str:
    head = ["operator", "params", "MACs", "kernels"]
    for kind in ("inference", "training"):
        head += [f"{kind} ms", "× dense", "ch.last ms", "× dense"]
    cells = []
    for row in rows:
        line = [row["operator"], si(row["params"]), si(row["macs"]), row["launches"]]
        for kind in ("inference", "training"):
            for layout in LAYOUTS:
                one = row[f"{kind} {layout}"]
                line += [f"{one['median_ms']:.3g}", f"{one['speedup']:.2f}"]
        cells.append([*line, si(row["training eager"]["peak_bytes"]) + "B"])
    title = f"{place}: {spec} at {spec.h}x{spec.w}; {label('cpu', dtype=torch.float32)}"
    note = f"inference batch 1, training step batch {batch}; ratios above 1 are faster than the dense layer"
    return table([*head, "peak"], cells, title=title, note=note)


def network_tables(
    arguments: argparse.Namespace,
) -> tuple[str, dict[str, Callable[[], Comparison | TrainingComparison]]]:
    """Return the U-Net's title, and table name -> function that measures the U-Net of every operator."""
    base, size = (8, 64) if arguments.quick else (32, 256)
    chosen = operators(ConvSpec.of(base, base, 3, 1, 1, bias=False, h=size, w=size), arguments.operators)
    x, batch, timing = torch.randn(1, 3, size, size), torch.randn(2, 3, size, size), _timing(arguments, 6)
    wide = x.contiguous(memory_format=torch.channels_last)

    def models(texts: list[str], layout: str = "eager") -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {text: unet(base=base, conv=text) for text in texts}
        return {name: _channels_last(model) for name, model in modules.items()} if layout != "eager" else modules

    def inference(layout: str) -> Comparison:
        modules = models(chosen, layout)
        compiled = _compiled({text: modules[text] for text in arguments.compile})
        return compare(modules | compiled, x if layout == "eager" else wide, **timing)

    # A training step needs two images, because ODConv has a norm after a global average.
    tables: dict[str, Callable[[], Comparison | TrainingComparison]] = {
        "training": lambda: compare_training(models(chosen), batch, settings=LAYOUTS, **timing),
        "inference eager": lambda: inference("eager"),
        "inference channels_last": lambda: inference("channels_last"),
    }
    if arguments.compile:
        settings = (*LAYOUTS, "compile", "compile channels_last")
        tables["training compiled"] = lambda: compare_training(
            models(arguments.compile), batch, settings=settings, **timing
        )
    return f"U-Net base {base} at {size} px, 3 channels in, 1 out", tables


def _channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _compiled(models: dict[str, nn.Module]) -> dict[str, nn.Module]:
    modules = {f"{name}, compiled": torch.compile(model, dynamic=False) for name, model in models.items()}
    return modules  # type: ignore[return-value]


def commit() -> str:
    """Return the measured commit, followed by "+" if files other than the results have changes."""
    git, others = ["git", "-C", str(Path(__file__).parent)], [":/", ":(exclude,top)benchmarks/results"]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    dirty = subprocess.run([*git, "diff", "HEAD", "--quiet", "--", *others], capture_output=True).returncode
    return f"{head}{'+' * bool(dirty)}" if head else "unknown"


if __name__ == "__main__":
    main()
