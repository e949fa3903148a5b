"""The engine of whole blocks against its peers on whole networks.

    python -m benchmarks.fused_engine --models "leanconv:unet?base=32&conv=splconv" timm:mobilenetv1_100 --size 224
    python -m benchmarks.fused_engine --set issue untuned --resume
    python -m benchmarks.fused_engine --show

Every engine is prepared as `optimize` prepares it, then all take turns in one process; a peer that is far behind the
best of its model leaves after a few rounds. `--clock process` counts the CPU time of the process: what a
crowded machine leaves comparable where each engine has one thread. `--against` adds another model on
its own engines, as the dense U-Net beside the SPLConv one; "MODEL to OPERATOR" is a model swapped by `plan` and
`apply_`. "of the floor": the network's roofline floor (benchmarks/floors.py) over the time. Prints the tables, adds to
benchmarks/results/fused_engine.json after every model; `--show` prints what stands there as one table.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import leanconv as lc
from benchmarks.floors import Floor, floor_of
from benchmarks.operators import commit
from leanconv.deploy.runtimes import first_line
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.workbench import Workbench
from leanconv.files import write_json
from leanconv.measure import Timing, interleave
from leanconv.measure.device import describe
from leanconv.measure.roofline import peaks
from leanconv.table import table

RESULT = Path(__file__).parent / "results" / "fused_engine.json"
ENGINES = ["fused", "openvino", "onnxruntime", "compile", "channels_last"]
# Rounds that everybody is given, and how far behind the best of its own model a peer may then be to stay.
LOOK, BEHIND = 4, 1.2


@dataclass(frozen=True)
class Row:
    """One line of the table: a model, what it is held against, and the call. `size`: "256", or "200x136"."""

    model: str
    against: str = ""
    size: str = "224"
    batch: int = 1
    threads: int = 1
    clock: str = "wall"

    def input(self) -> Tensor:
        height, _, width = self.size.partition("x")
        return torch.randn(self.batch, 3, int(height), int(width or height))

    def same(self, entry: dict[str, Any]) -> bool:
        """Whether an entry of the results is of this row; `size` was a number once."""
        own = {key: value for key, value in asdict(self).items() if key != "against"}
        return all(str(entry.get(key)) == str(value) for key, value in own.items())


_UNET, _VGG, _RESNET = "leanconv:unet?base=32&conv=", "leanconv:vgg16_cifar?conv=", "leanconv:resnet50?conv="
_HET = "hetconv(part=4)"
SETS = {
    # The table of figures to reach.
    "issue": [
        Row(f"{_UNET}splconv", f"{_UNET}conv", "256"), Row(f"{_UNET}splconv", f"{_UNET}conv", "512"),
        Row(_VGG + _HET, f"{_VGG}conv", "32"), Row(_VGG + _HET, f"{_VGG}conv", "32", 8),
        Row(_RESNET + _HET, f"{_RESNET}conv"), Row(_RESNET + _HET, f"{_RESNET}conv", batch=8),
        Row("timm:mobilenetv1_100"), Row("timm:mobilenetv3_small_100"), Row("timm:inception_next_tiny"),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "256", threads=2),
        Row(f"{_UNET}splconv", f"{_UNET}conv", "512", threads=2),
    ],
    # Other widths, odd sizes, residual additions: nothing was looked at while the engine was made.
    "untuned": [
        Row("leanconv:unet?base=24&conv=splconv", "leanconv:unet?base=24&conv=conv", "208x144"),
        Row(f"timm:resnet18 to {_HET}", "timm:resnet18"),
        Row("timm:resnet18 to splconv", "timm:resnet18", "193x161"),
        Row("timm:mobilenetv2_100 to xsepconv"), Row("timm:mobilenetv2_110d", size="181"),
        Row("timm:efficientnet_lite0"), Row("timm:ghostnet_100", size="208x176"),
    ],
}  # fmt: skip


def built(reference: str) -> nn.Module:
    """A model from its reference; "MODEL to OPERATOR" is swapped wherever the operator may stand."""
    name, _, operator = reference.partition(" to ")
    model = lc.load(name).eval()
    if operator:
        lc.apply_(model, lc.plan(model, torch.randn(1, 3, 224, 224), to=operator), init="fresh")
    return model


def prepared(
    reference: str, x: Tensor, engines: list[str], show: bool
) -> tuple[dict[str, Callable[[], Any]], Workbench]:
    """Each engine's form of the model, called on `x`; those that cannot run it or are wrong are left out and told."""
    bench = Workbench(built(reference), (x,), {}, torch.get_num_threads())
    calls: dict[str, Callable[[], Any]] = {}
    for name in engines:
        if reason := CANDIDATES[name].why_not(bench, None):
            print(f"{reference}, {name}: {reason}")
            continue
        progress(f"{reference}: preparing {name}")
        try:
            form = CANDIDATES[name].prepare(bench, None)
            seen, _ = bench.verify(form)
        except Exception as error:  # a peer that cannot run the network is one less
            print(f"{reference}, {name}: {first_line(error)}")
            continue
        if not seen.ok(bench.tolerance(None)):
            print(f"{reference}, {name}: differs by {seen.relative:.1e}")
            continue
        if show and hasattr(form, "blocks"):
            print(f"\n{reference}\n{form.blocks}", flush=True)
        calls[f"{reference}, {name}"] = lambda form=form: form(x)  # type: ignore[misc]
    return calls, bench


def progress(text: str) -> None:
    """A line on a terminal's error stream that the next one writes over."""
    if sys.stderr.isatty():
        print(f"\r{text[:100]:<100}", end="\r", file=sys.stderr, flush=True)


def timed(calls: dict[str, Callable[[], Any]], clock: str, seconds: float) -> dict[str, Timing]:
    """A few rounds of all calls, then of those that are not far behind until the seconds are spent; at least six."""
    first = interleave(calls, budget_s=0, warmup=2, min_rounds=LOOK, clock=clock)
    near = {name: calls[name] for name in hopeful({name: t.median_ms for name, t in first.items()})}
    found = interleave(
        near, budget_s=seconds, warmup=0, min_rounds=6, max_rounds=2000, clock=clock,
        on_round=lambda done: progress(f"{done:.0%} of the rounds"),
    )  # fmt: skip
    return first | found


def hopeful(times: dict[str, float]) -> list[str]:
    """The peers near the best peer of their own model, and our engine."""
    best: dict[str, float] = {}
    for name, ms in times.items():
        model, _, engine = name.rpartition(", ")
        if engine != "fused":
            best[model] = min(ms, best.get(model, ms))
    return [
        name for name, ms in times.items() if name.endswith(", fused") or ms <= BEHIND * best[name.rpartition(", ")[0]]
    ]


def measured(row: Row, engines: list[str], seconds: float, blocks: bool) -> dict[str, Any]:
    """One row: every engine's time of the model and of what it is held against, and both floors."""
    torch.set_num_threads(row.threads)
    x = row.input()
    top = peaks(clock=row.clock)
    calls, bench = prepared(row.model, x, engines, blocks)
    floors = {row.model: floor_of(bench, top)}
    if row.against:
        more, bench = prepared(row.against, x, engines, blocks)
        calls, floors = calls | more, floors | {row.against: floor_of(bench, top)}
    times = timed(calls, row.clock, seconds)
    print(f"\n{shown(row, times, floors)}\n{top}", flush=True)
    return {
        **asdict(row), "command": shlex.join(["python", "-m", "benchmarks.fused_engine", *sys.argv[1:]]),
        "commit": commit(), "times": {name: t.to_dict() for name, t in times.items()},
        "floors": {name: floor.to_dict() for name, floor in floors.items()}, "peaks": top.to_dict(),
        "machine": describe(),
    }  # fmt: skip


def shown(row: Row, times: dict[str, Timing], floors: dict[str, Floor]) -> str:
    """The table of one row: every form, how many times as long as our engine it takes, its share of the floor."""
    own = times.get(f"{row.model}, fused") or min(times.values(), key=lambda t: t.median_ms)
    lines = [
        [name, f"{t.median_ms:.2f}", f"{t.iqr_ms:.2g}", str(t.rounds), f"{t.median_ms / own.median_ms:.2f}",
         f"{floors[name.rpartition(', ')[0]].ms:.2f}", f"{floors[name.rpartition(', ')[0]].ms / t.median_ms:.0%}"]
        for name, t in times.items()
    ]  # fmt: skip
    note = ", ".join(f"{key} {value}" for key, value in asdict(row).items() if key not in ("model", "against"))
    columns = ["form", "ms", "IQR", "rounds", "the fused one is faster by", "floor ms", "of the floor"]
    return table(columns, lines, note=note)


def summary(entries: list[dict[str, Any]]) -> str:
    """All rows of the results: our engine, its best peer, the dense network's best engine, floor, one thread's time."""
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
        lines.append([
            entry["model"], str(entry["size"]), str(entry["batch"]), str(entry["threads"]), f"{fused:.2f}",
            *_least(own, fused), *_least(dense, fused), f"{floor['ms'] / fused:.0%}" if floor else "-",
            f"{alone / fused:.2f}" if alone else "-", entry["clock"],
        ])  # fmt: skip
    columns = [
        "network", "size", "batch", "threads", "ours ms", "best peer is slower by", "which", "dense is slower by",
        "which", "of the floor", "1 thread is slower by", "clock",
    ]  # fmt: skip
    return table(columns, lines)


def medians(entry: dict[str, Any], model: str) -> dict[str, float]:
    """Engine -> median ms of one model of an entry."""
    names = (name.rpartition(", ") for name in entry["times"])
    return {engine: entry["times"][f"{of}, {engine}"]["median_ms"] for of, _, engine in names if of == model}


def _least(times: dict[str, float], fused: float) -> list[str]:
    name = min(times, key=times.__getitem__, default="")
    return [f"{times[name] / fused:.2f}", name] if name else ["-", ""]


def _one_thread(entry: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether `other` is the same row on one thread."""
    alike = all(str(entry.get(key)) == str(other.get(key)) for key in ("model", "size", "batch", "dtype"))
    return alike and entry["threads"] > 1 == other["threads"] and entry["clock"] == other["clock"]


def rows_of(arguments: argparse.Namespace) -> list[Row]:
    """The rows of the named sets and of `--models`; the default is the first row of the issue's table."""
    given = Row("", arguments.against, arguments.size, arguments.batch, arguments.threads or 1, arguments.clock)
    rows = [replace(row, clock=arguments.clock) for name in arguments.set for row in SETS[name]]
    if arguments.threads and arguments.set:
        rows = [row for row in rows if row.threads == arguments.threads]
    return rows + [replace(given, model=model) for model in arguments.models]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[])
    parser.add_argument("--set", nargs="+", default=[], choices=list(SETS), help="rows that stand in this file")
    parser.add_argument("--against", default="", help="another model, timed beside each of --models")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=list(CANDIDATES))
    parser.add_argument("--without", nargs="+", default=[], help="engines to leave out, as compile: it takes longest")
    parser.add_argument("--size", default="224", help="256, or 200x136 (height, width)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, help="of --models (default 1); of --set: those rows only")
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--seconds", type=float, default=15, help="of timing per row, at least eight rounds")
    parser.add_argument("--blocks", action="store_true", help="print the tables of blocks")
    parser.add_argument("--resume", action="store_true", help="leave out rows that were measured at this commit")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the results as one table")
    parser.add_argument("--out", type=Path, default=RESULT)
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
