"""Compare the fused engine with its peers on whole networks.

    python -m benchmarks.fused_engine --models "leanconv:unet?base=32&conv=splconv" timm:mobilenetv1_100 --size 224
    python -m benchmarks.fused_engine --set issue untuned --resume
    python -m benchmarks.fused_engine --show

Peers are OpenVINO, ONNX Runtime, torch.compile, eager channels_last, ncnn and XNNPACK (benchmarks/other_runtimes.py);
one that is not installed is named with the command that installs it. Engines are prepared as in `optimize`, then timed
in turns in one process. Peers far behind their model's best leave after a few rounds. `--clock process` counts the
process's CPU time. It stays comparable on a busy machine if each engine has one thread. `--against` adds another model,
for example the dense U-Net beside the SPLConv one. A model "MODEL to OPERATOR" is swapped by `plan` and `apply_`. The
column "of the floor" is the roofline floor (leanconv/engine/fused/roofline.py) over the time; "of the peak" is
the share of the peak flops. The script prints the tables and updates benchmarks/results/fused_engine.json after every
model (fused_engine_avx2.json on a CPU with AVX2 alone). `--show` prints that file as one table.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import leanconv as lc
from benchmarks import command_of, results_of
from benchmarks.operators import commit
from benchmarks.other_runtimes import OTHERS, versions
from leanconv.engine.candidates import CANDIDATES, EAGER
from leanconv.engine.peers import compare_engines
from leanconv.files import write_json
from leanconv.measure.device import describe
from leanconv.table import table

ENGINES = ["fused", "openvino", "onnxruntime", "compile", "channels_last", *OTHERS]
# Calibration pictures of int8, and the loss up to which a form is timed.
PICTURES, MOST_LOST = 8, 0.05


@dataclass(frozen=True)
class Row:
    """One row of the table: a model, the model to compare it with, and the call. `size`: "256" or "200x136"."""

    model: str
    against: str = ""
    size: str = "224"
    batch: int = 1
    threads: int = 1
    dtype: str = "float32"
    clock: str = "wall"

    def input(self, batch: int = 0) -> Tensor:
        height, _, width = self.size.partition("x")
        return torch.randn(batch or self.batch, 3, int(height), int(width or height))

    def type(self) -> dict[str, Any]:
        """The arguments of `compare_engines` for the dtype. These networks are untrained, so noise calibrates them."""
        if self.dtype == "float32":
            return {}
        calibration = {"data": self.input(PICTURES), "max_loss": MOST_LOST} if self.dtype == "int8" else {}
        return {"dtype": getattr(torch, self.dtype), **calibration}

    def same(self, entry: dict[str, Any]) -> bool:
        """Whether a result of this machine belongs to this row. The oldest ones have a number for `size`, no dtype."""
        if "machine" in entry and kind(entry["machine"]) != kind(describe("cpu")):
            return False
        own = {key: value for key, value in asdict(self).items() if key != "against"}
        return all(str(entry.get(key, "float32")) == str(value) for key, value in own.items())


def kind(machine: dict[str, Any]) -> dict[str, Any]:
    """A machine without the threads, which are a row's own."""
    return {key: value for key, value in machine.items() if key != "threads"}


_UNET, _VGG, _RESNET = "leanconv:unet?base=32&conv=", "leanconv:vgg16_cifar?conv=", "leanconv:resnet50?conv="
_HET = "hetconv(part=4)"
SETS = {
    # The networks with target figures.
    "issue": [
        Row(f"{_UNET}splconv", f"{_UNET}conv", "256"),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "512"),
        Row(_VGG + _HET, f"{_VGG}conv", "32"),
        Row(_VGG + _HET, f"{_VGG}conv", "32", 8),
        Row(_RESNET + _HET, f"{_RESNET}conv"),
        Row(_RESNET + _HET, f"{_RESNET}conv", batch=8),
        Row("timm:mobilenetv1_100"),
        Row("timm:mobilenetv3_small_100"),
        Row("timm:inception_next_tiny"),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "256", threads=2),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "512", threads=2),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "256", dtype="bfloat16"),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "512", dtype="bfloat16"),
    ],
    # In int8, each on every engine's own; losses are printed beside the times.
    "int8": [
        Row(f"{_UNET}splconv", f"{_UNET}conv", "256", dtype="int8"),
        Row("timm:mobilenetv3_small_100", dtype="int8"),
    ],
    # Other widths, odd sizes, residual additions. The engine was never tuned on these.
    "untuned": [
        Row("leanconv:unet?base=24&conv=splconv", "leanconv:unet?base=24&conv=conv", "208x144"),
        Row(f"timm:resnet18 to {_HET}", "timm:resnet18"),
        Row("timm:resnet18 to splconv", "timm:resnet18", "193x161"),
        Row("timm:mobilenetv2_100 to xsepconv"),
        Row("timm:mobilenetv2_110d", size="181"),
        Row("timm:efficientnet_lite0"),
        Row("timm:ghostnet_100", size="208x176"),
    ],
}


def built(reference: str) -> nn.Module:
    """Build a model from its reference. "MODEL to OPERATOR" is swapped wherever the operator fits."""
    name, _, operator = reference.partition(" to ")
    model = lc.load(name).eval()
    if operator:
        lc.apply_(model, lc.plan(model, torch.randn(1, 3, 224, 224), to=operator), init="fresh")
    return model


def progress(text: str) -> None:
    """Print a line on a terminal's stderr, which the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r{text[:100]:<100}", end="\r", file=sys.stderr, flush=True)


def measured(row: Row, engines: list[str], seconds: float, blocks: bool) -> dict[str, Any]:
    """Measure one row: every engine's times of both models, and both floors."""
    torch.set_num_threads(row.threads)

    def show_blocks(name: str, form: Any) -> None:
        if blocks and hasattr(form, "blocks"):
            print(f"\n{name}\n{form.blocks}", flush=True)

    found = compare_engines(
        {reference: built(reference) for reference in (row.model, row.against) if reference},
        row.input(),
        engines=[name for name in engines if name not in OTHERS],
        others=[OTHERS[name] for name in engines if name in OTHERS],
        **row.type(),
        budget_s=seconds,
        clock=row.clock,
        progress=lambda what, done: progress(f"{what}, {done:.0%}"),
        on_form=show_blocks,
    )
    kept = versions(engines)
    print(f"\n{found}\npeers: {', '.join(f'{name} {text}' for name, text in kept.items())}", flush=True)
    command = command_of("fused_engine")
    return {**asdict(row), "command": command, "commit": commit(), "versions": kept, **found.to_dict()}


def summary(entries: list[dict[str, Any]]) -> str:
    """Format all results: our engine, its best peer, the dense network's best engine, floor, one thread's time."""
    lines = []
    for entry in entries:
        own = medians(entry, entry["model"])
        fused = own.pop("fused", None)
        if fused is None:
            continue
        dense = medians(entry, entry["against"]) if entry["against"] else {}
        floor = entry.get("floors", {}).get(entry["model"])
        single = next((e for e in entries if _one_thread(entry, e)), None)
        alone = medians(single, entry["model"]).get("fused") if single else None
        lines.append(
            [
                entry["model"],
                *(str(entry.get(key, "float32")) for key in ("size", "batch", "threads", "dtype")),
                f"{fused:.2f}",
                *_least(own, fused),
                *_least(dense, fused),
                f"{floor['ms'] / fused:.0%}" if floor else "-",
                f"{floor['compute_ms'] / fused:.0%}" if floor else "-",
                f"{alone / fused:.2f}" if alone else "-",
                entry["clock"],
            ]
        )
    columns = [
        "network", "size", "batch", "threads", "dtype", "ours ms", "best peer is slower by", "which",
        "dense is slower by", "which", "of the floor", "of the peak", "1 thread is slower by", "clock",
    ]  # fmt: skip
    return table(columns, lines)


def medians(entry: dict[str, Any], model: str) -> dict[str, float]:
    """Return engine -> median ms for one model of a result."""
    names = (name.rpartition(", ") for name in entry["times"])
    return {engine: entry["times"][f"{of}, {engine}"]["median_ms"] for of, _, engine in names if of == model}


def _least(times: dict[str, float], fused: float) -> list[str]:
    name = min(times, key=times.__getitem__, default="")
    return [f"{times[name] / fused:.2f}", name] if name else ["-", ""]


def _one_thread(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `other` is the same row on one thread."""
    alike = all(entry.get(key, "float32") == other.get(key, "float32") for key in ("model", "size", "batch", "dtype"))
    return alike and entry["threads"] > 1 == other["threads"] and entry["clock"] == other["clock"]


def rows_of(arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of the named sets and of `--models`."""
    given = Row(
        "", arguments.against, arguments.size, arguments.batch, arguments.threads or 1, arguments.dtype, arguments.clock
    )
    rows = [replace(row, clock=arguments.clock) for name in arguments.set for row in SETS[name]]
    if arguments.threads:
        rows = [row for row in rows if row.threads == arguments.threads and row.dtype == arguments.dtype]
    return rows + [replace(given, model=model) for model in arguments.models]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--set", nargs="+", default=[], choices=list(SETS), help="sets of rows in this file")
    parser.add_argument("--against", default="", help="another model, timed with each of --models")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=[EAGER, *CANDIDATES, *OTHERS])
    parser.add_argument(
        "--without", nargs="+", default=[], help="engines to leave out, for example compile, which takes longest"
    )
    parser.add_argument("--size", default="224", help="256, or 200x136 (height, width)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--threads", type=int, help="threads of --models (default 1); with --set: only rows with as many"
    )
    parser.add_argument(
        "--dtype", default="float32", help="dtype of --models; with --set and --threads: only rows with this dtype"
    )
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--seconds", type=float, default=15, help="seconds of timing per row, at least eight rounds")
    parser.add_argument("--blocks", action="store_true", help="print the tables of blocks")
    parser.add_argument("--resume", action="store_true", help="skip rows that were measured at this commit")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the results as one table")
    parser.add_argument("--out", type=Path, default=results_of("fused_engine"))
    arguments = parser.parse_args()
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    if arguments.show:
        print(summary(report))
        return
    rows = rows_of(arguments)
    if not rows:
        parser.error("nothing to measure: name --models, or a --set")
    engines, here = [name for name in arguments.engines if name not in arguments.without], commit()
    for i, row in enumerate(rows):
        if arguments.resume and any(row.same(old) and old.get("commit") == here for old in report):
            continue
        print(f"\n{i + 1} of {len(rows)}: {row.model}", flush=True)
        entry = measured(row, engines, arguments.seconds, arguments.blocks)
        report = [old for old in report if not row.same(old)] + [entry]
        write_json(arguments.out, report)
    print(f"\n{summary(report)}")


if __name__ == "__main__":
    main()
