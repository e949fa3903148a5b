"""Compare what `optimize` chooses with the best peer: every operator on every layer shape, then whole networks.

    python -m benchmarks.choices [--operators splconv ...] [--layers "U-Net" ...] [--minutes 10] [--show | --warm]

A layer is convolution, BatchNorm, ReLU, as in a user's model. `optimize` gets its default engines and `--budget`
seconds, enough on an idle machine. For layers, torch.compile is left out unless `--compile`: it takes 15 s each.

The result of `optimize` is then timed in turns with every peer, called directly. Peers are the given model,
channels_last, OpenVINO and ONNX Runtime, even if the budget did not reach them. So is torch.compile if it did.

The fastest of them is the best peer. It is timed once more against the chosen form, in separate rounds. The ratio is
its time over the chosen form's: the median over the rounds, with bounds of two standard errors. Below 1, the choice
cost time. A row runs until its ratio is known to +-1 %, within `--seconds`. No row is repeated because of its result.

malloc keeps freed memory for all forms. Rows of this commit in benchmarks/results/choices.json are not measured
again, so a stopped run can be continued. The order was drawn once, so that any part of it is a sample.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import leanconv as lc
from benchmarks import command_of, results_of
from benchmarks.cpu_kernels import DENSE, DEPTHWISE, keep_freed_memory
from benchmarks.fused_engine import built, progress
from benchmarks.operators import commit, operators
from benchmarks.other_runtimes import versions
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.choices import Choices
from leanconv.engine.workbench import Workbench
from leanconv.files import write_json
from leanconv.measure import Timing, interleave
from leanconv.measure.device import describe
from leanconv.measure.timing.paired import Turns
from leanconv.nn import make, names
from leanconv.spec import ConvSpec
from leanconv.table import table

OURS = ("folded", "fused")  # all other forms are peers
LIMIT, HOPELESS = 0.97, 2.0
# A ratio is known to this share at this many standard errors. Fewest and most rounds.
KNOWN, SIGMAS, LEAST_ROUNDS, MOST_ROUNDS = 0.01, 2.0, 16, 400
NETWORKS = {
    "leanconv:unet?base=32&conv=splconv": 256, "leanconv:unet?base=32": 256, "timm:resnet18": 224,
    "leanconv:resnet50?conv=hetconv(part=4)": 224,
    "leanconv:vgg16_cifar?conv=hetconv(part=4)": 32, "leanconv:mobilenet_v3_small?conv=xsepconv": 224,
    "timm:mobilenetv3_small_100": 224, "timm:mobilenetv1_100": 224, "timm:inception_next_tiny": 224,
    "timm:resnet18 to splconv": 224,
}  # fmt: skip


def layer_rows() -> list[tuple[str, str]]:
    """Return (operator, layer) in a fixed random order, so that any part is a sample."""
    found = [(operator, layer) for layer in [*DENSE, *DEPTHWISE] for operator in operators(spec_of(layer), names())]
    return random.Random(0).sample(found, len(found))


def spec_of(layer: str) -> ConvSpec:
    c, o, k, size = (DENSE | DEPTHWISE)[layer]
    return ConvSpec.of(c, o, k, 1, k // 2, groups=c if layer in DEPTHWISE else 1, bias=False, h=size, w=size)


def layer_model(operator: str, spec: ConvSpec) -> nn.Module:
    """Build convolution, BatchNorm, ReLU with statistics as after training."""
    torch.manual_seed(0)
    model = nn.Sequential(make(operator, **spec.arguments()), nn.BatchNorm2d(spec.o), nn.ReLU())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    return model.eval()


@contextmanager
def keeping() -> Iterator[dict[str, Callable[..., Any]]]:
    """Yield a dict that collects every form that `optimize` prepares inside the block, by its row's label."""
    forms: dict[str, Callable[..., Any]] = {}
    before = dict(CANDIDATES)

    def kept(name: str) -> Callable[..., Any]:
        def prepare(bench: Workbench, dtype: torch.dtype | None) -> Any:
            label = name if dtype is None else f"{name} {str(dtype).removeprefix('torch.')}"
            forms[label] = before[name].prepare(bench, dtype)
            return forms[label]

        return prepare

    CANDIDATES.update({name: replace(each, prepare=kept(name)) for name, each in before.items()})
    try:
        yield forms
    finally:
        CANDIDATES.update(before)


def left_over(choices: Choices, model: nn.Module, x: Tensor) -> dict[str, Callable[..., Any]]:
    """Prepare the peers that the budget did not reach, except torch.compile: a choice is compared with all of them."""
    bench, forms = Workbench(model, (x,), {}, torch.get_num_threads()), {}
    for row in choices:
        if row.note.startswith("skipped: needs") and row.engine not in ("compile", *OURS):
            form = CANDIDATES[row.engine].prepare(bench, None)
            if bench.verify(form)[0].passes:
                forms[row.engine] = form
    return forms


def right(choices: Choices) -> set[str]:
    """Return the labels of the correct forms."""
    return {row.label for row in choices if row.error is not None and row.error <= (row.tolerance or 0.0)}


def measured(
    model: nn.Module, x: Tensor, budget_s: float, seconds: float, clock: str, engines: list[str]
) -> dict[str, Any]:
    """Time the result of `optimize` against every peer."""
    with keeping() as forms:
        fast = lc.optimize(model, x, budget_s=budget_s, engines=engines)
    alike = right(fast.choices) - {"eager"}
    held = {name: form for name, form in forms.items() if name in alike} | left_over(fast.choices, model, x)
    calls = {"chosen": lambda: fast(x), "eager": lambda: model(x)}
    calls |= {name: (lambda form=form: form(x)) for name, form in held.items()}  # type: ignore[misc]
    looks = interleave(
        near(calls, clock), budget_s=0.3 * seconds, min_rounds=5, max_rounds=20, clock=clock, primed=True
    )
    peer = best_peer(looks)
    turns = duel(calls["chosen"], calls[peer], seconds, clock)
    seen = turns.ratio("peer", "chosen", sigmas=SIGMAS)
    times = looks | {"chosen": turns.timing("chosen"), peer: turns.timing("peer")}
    return {
        "chosen": fast.engine,
        "peer": peer,
        "ratio": seen.middle,
        "low": seen.low,
        "high": seen.high,
        "ms": {name: timing.to_dict() for name, timing in times.items()},
        "left_out": {row.engine: row.note for row in fast.choices if row.error is None},
    }


def duel(chosen: Callable[[], Any], peer: Callable[[], Any], seconds: float, clock: str) -> Turns:
    """Time two forms in turns until their ratio is known to KNOWN, or the time is spent.

    The value of the ratio never stops the rounds: that would favour one side.
    """
    turns, start = Turns({"chosen": chosen, "peer": peer}, clock=clock, primed=True), time.perf_counter()
    for rounds in range(1, MOST_ROUNDS + 1):
        turns.round()
        if rounds % 8 == 0:
            seen = turns.ratio("peer", "chosen", sigmas=SIGMAS)
            if seen.high / seen.low < (1 + KNOWN) ** 2 and rounds >= LEAST_ROUNDS:
                break
        if rounds >= 7 and time.perf_counter() - start > seconds:
            break
    return turns


def near(calls: dict[str, Callable[[], Any]], clock: str = "wall") -> dict[str, Callable[[], Any]]:
    """Return the chosen form and the forms that are not hopelessly slow. The best peer is among them."""
    seen = interleave(calls, budget_s=0, warmup=1, min_rounds=3, clock=clock)
    looks = {name: timing.median_ms for name, timing in seen.items()}
    best = min(ms for name, ms in looks.items() if name.split()[0] not in ("chosen", *OURS))
    return {name: call for name, call in calls.items() if name == "chosen" or looks[name] <= HOPELESS * best}


def best_peer(times: dict[str, Timing]) -> str:
    peers = {name: timing.median_ms for name, timing in times.items() if name.split()[0] not in ("chosen", *OURS)}
    return min(peers, key=peers.__getitem__)


def show(rows: list[dict[str, Any]], most: int = 25) -> str:
    """Format the rows, worst first, then a line per operator."""
    lines = [
        [
            row["operator"],
            row["place"],
            row["chosen"],
            f"{row['ms']['chosen']['median_ms']:.3f}",
            f"{row['ms']['chosen']['iqr_ms']:.2g}",
            row["peer"],
            f"{row['ratio']:.3f}",
            f"{row['low']:.3f} {row['high']:.3f}",
        ]
        for row in sorted(rows, key=lambda row: row["ratio"])
    ]
    columns = ["operator", "layer or network", "chosen", "ms", "IQR", "best peer", "ratio", "between"]
    below, surely = (sum(row[key] < LIMIT for row in rows) for key in ("ratio", "high"))
    note = f"{len(rows)} rows, {below} below {LIMIT}, {surely} of them beyond noise; the worst {min(most, len(rows))}"
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row["operator"], []).append(row["ratio"])
    means = [
        [name, len(found), f"{math.exp(statistics.fmean(map(math.log, found))):.2f}", f"{min(found):.2f}"]
        for name, found in sorted(groups.items())
    ]
    first = table(columns, lines[:most], note=note)
    return f"{first}\n\n{table(['operator', 'rows', 'geometric mean', 'worst'], means)}"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operators", nargs="+", help="default: all registered ones, and whole networks (network)")
    parser.add_argument("--layers", nargs="+", default=[""], help="layers whose names contain one of these")
    parser.add_argument("--networks", nargs="*", help="model references or none (default: those in this file)")
    parser.add_argument("--budget", type=float, default=60, help="seconds of each optimize")
    parser.add_argument("--seconds", type=float, default=0.6, help="seconds of timing per row; six times for a network")
    parser.add_argument("--minutes", type=float, default=math.inf, help="start no row after this many minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "process"], default="wall")
    parser.add_argument("--compile", action="store_true", help="torch.compile for layers too")
    parser.add_argument("--again", action="store_true", help="measure rows of this commit again")
    parser.add_argument("--warm", action="store_true", help="measure nothing, compile the kernels into the cache")
    parser.add_argument("--show", action="store_true", help="measure nothing, print the results")
    parser.add_argument("--out", type=Path, default=results_of("choices"))
    arguments = parser.parse_args()
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"rows": []}
    if arguments.show:
        print(show(report["rows"], len(report["rows"])))
        return
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    if arguments.warm:
        warm(asked(arguments))
        return
    lc.optimize(*example(*layer_rows()[0]), budget_s=60, engines=[*CANDIDATES][:-1])  # import all engines now
    run(asked(arguments), report, arguments)
    print(show(report["rows"]))


def asked(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the rows that the arguments name: (operator, layer), with ("network", reference) spread between."""
    layers = [
        (operator, layer)
        for operator, layer in layer_rows()
        if any(word in layer for word in arguments.layers) and operator in (arguments.operators or [operator])
    ]
    wanted = arguments.networks
    if wanted is None:
        everything = not arguments.operators and arguments.layers == [""]
        wanted = list(NETWORKS) if everything or "network" in (arguments.operators or []) else []
    for i, reference in enumerate(wanted):
        layers.insert((i + 1) * 8 + i, ("network", reference))
    return layers


def example(operator: str, place: str) -> tuple[nn.Module, Tensor]:
    """Build the model of a row and its input."""
    if operator == "network":
        size = NETWORKS.get(place, 224)
        return built(place), torch.randn(1, 3, size, size)
    spec = spec_of(place)
    return layer_model(operator, spec), torch.randn(1, spec.c, spec.h, spec.w)


def warm(rows: list[tuple[str, str]]) -> None:
    """Compile the rows' kernels in advance."""
    for i, (operator, place) in enumerate(rows):
        progress(f"{i + 1} of {len(rows)}: {operator}, {place}")
        model, x = example(operator, place)
        CANDIDATES["fused"].prepare(Workbench(model, (x,), {}, torch.get_num_threads()), None)


def run(rows: list[tuple[str, str]], report: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Measure row by row, and write the report after each."""
    start, here = time.perf_counter(), commit()
    settings = {"threads": arguments.threads, "clock": arguments.clock}
    machine = describe("cpu") | {"threads": "of each row"}
    if report.get("machine", machine) | {"threads": "of each row"} != machine:
        print("the results come from another machine: starting a new table")
        report["rows"] = []
    report |= {"command": command_of("choices"), "machine": machine}
    report["versions"] = versions(list(CANDIDATES))
    for i, (operator, place) in enumerate(rows):
        key = {"operator": operator, "place": place, **settings}
        old = next((row for row in report["rows"] if all(row.get(k) == v for k, v in key.items())), None)
        if old is not None and old["commit"] == here and not arguments.again:
            continue
        if time.perf_counter() - start > 60 * arguments.minutes:
            print(f"{len(rows) - i} rows left for another run")
            break
        progress(f"{i + 1} of {len(rows)}: {operator}, {place}")
        network = operator == "network"
        engines = [each for each in CANDIDATES if each != "compile" or network or arguments.compile]
        seconds = arguments.seconds * (6 if network else 1)
        found = measured(*example(operator, place), arguments.budget, seconds, arguments.clock, engines)
        print(f"{operator}, {place}: {found['chosen']}, {found['ratio']:.3f} of {found['peer']}", flush=True)
        report["rows"] = [row for row in report["rows"] if row is not old] + [key | {"commit": here} | found]
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()
