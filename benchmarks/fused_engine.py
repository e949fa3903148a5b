"""The engine of whole blocks against its peers on whole networks.

    python -m benchmarks.fused_engine --models "leanconv:unet?base=32&conv=splconv" timm:mobilenetv1_100 --size 224

Every engine is prepared as `optimize` prepares it, then all take turns in one process. `--clock process` counts the
CPU time of the whole process, all its threads: what a crowded machine leaves comparable where each engine has one
thread. `--against` adds another model on its own engines, as the dense U-Net beside the SPLConv one. Prints the tables,
adds to benchmarks/results/fused_engine.json.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import leanconv as lc
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.workbench import Workbench
from leanconv.files import write_json
from leanconv.measure import Timing
from leanconv.measure.device import describe
from leanconv.table import table

RESULT = Path(__file__).parent / "results" / "fused_engine.json"
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def prepared(reference: str, x: torch.Tensor, engines: list[str], show: bool) -> dict[str, Callable[[], Any]]:
    """Each engine's form of the model, called on `x`; those that cannot run it or are wrong are left out and told."""
    model = lc.load(reference).eval()
    bench = Workbench(model, (x,), {}, torch.get_num_threads())
    calls: dict[str, Callable[[], Any]] = {}
    for name in engines:
        if reason := CANDIDATES[name].why_not(bench, None):
            print(f"{reference}, {name}: {reason}")
            continue
        form = CANDIDATES[name].prepare(bench, None)
        seen, _ = bench.verify(form)
        if not seen.ok(bench.tolerance(None)):
            print(f"{reference}, {name}: differs by {seen.relative:.1e}")
            continue
        if show and hasattr(form, "blocks"):
            print(f"\n{reference}\n{form.blocks}", flush=True)
        calls[f"{reference}, {name}"] = lambda form=form: form(x)  # type: ignore[misc]
    return calls


def timed(calls: dict[str, Callable[[], Any]], clock: str, seconds: float) -> dict[str, Timing]:
    """Rounds of all calls, their order turned by one each time, until the seconds are spent; at least five."""
    now, times = CLOCKS[clock], {name: list[float]() for name in calls}
    names, deadline = list(calls), time.perf_counter() + seconds
    for done in range(10_000):
        for name in names[done % len(names) :] + names[: done % len(names)]:
            start = now()
            calls[name]()
            times[name].append((now() - start) * 1e3)
        if done >= 7 and time.perf_counter() > deadline:
            break
    return {name: Timing.of(found[2:]) for name, found in times.items()}  # the first two warm up


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["leanconv:unet?base=32&conv=splconv"])
    parser.add_argument("--against", default="", help="another model, timed beside each of them")
    parser.add_argument("--engines", nargs="+", default=["fused", "openvino", "onnxruntime"])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--blocks", action="store_true", help="print the tables of blocks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    x = torch.randn(arguments.batch, 3, arguments.size, arguments.size)
    what = {key: getattr(arguments, key) for key in ("size", "batch", "threads", "clock")}
    report = json.loads(RESULT.read_text()) if RESULT.exists() else []
    for reference in arguments.models:
        calls = prepared(reference, x, arguments.engines, arguments.blocks)
        if arguments.against:
            calls |= prepared(arguments.against, x, arguments.engines, arguments.blocks)
        times = timed(calls, arguments.clock, arguments.seconds)
        own = times[f"{reference}, fused"].median_ms
        rows = [
            [name, f"{t.median_ms:.2f}", f"{t.iqr_ms:.2g}", f"{t.median_ms / own:.2f}"] for name, t in times.items()
        ]
        note = ", ".join(f"{key} {value}" for key, value in what.items())
        print(f"\n{table(['form', 'ms', 'IQR', 'the fused one is faster by'], rows, note=note)}", flush=True)
        command = f"python -m benchmarks.fused_engine {shlex.join(sys.argv[1:])}"
        entry = {
            "model": reference, **what, "against": arguments.against, "command": command,
            "times": {name: t.to_dict() for name, t in times.items()},
        }  # fmt: skip
        report = [old for old in report if any(old.get(key) != entry[key] for key in ("model", *what))]
        report.append(entry | {"machine": describe()})
        write_json(RESULT, report)


if __name__ == "__main__":
    main()
