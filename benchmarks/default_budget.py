"""Test `optimize` with its default budget: which engines were prepared, and how the choice compares with its peers.

    python -m benchmarks.default_budget [--networks REFERENCE ...] [--threads 1 2] [--dtypes float32 bfloat16] [--cold]

Each row runs in a new process, like a user's call: no engine is imported before. With `--cold`, no kernel is compiled
either. After `optimize`, the chosen form is timed in turns with each prepared form. The ratio is the best peer's time
over the chosen form's. It is the median over the rounds, with bounds of two standard errors.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import leanconv as lc
from benchmarks import command_of
from benchmarks.choices import LIMIT, SIGMAS, best_peer, duel, keeping, near, right
from benchmarks.fused_engine import built
from benchmarks.operators import commit
from leanconv.files import write_json
from leanconv.measure import interleave
from leanconv.measure.device import describe
from leanconv.table import table

OUT = Path(__file__).parent / "results" / "default_budget.json"
NETWORKS = {
    "leanconv:unet?base=32&conv=splconv": 512,
    "leanconv:unet?base=32": 512,
    "timm:resnet50": 224,
    "timm:mobilenetv3_small_100": 224,
}


@torch.no_grad()
def row(network: str, dtype: str, seconds: float) -> dict[str, Any]:
    """Call `optimize` with its defaults, then time its choice against the best peer."""
    size = NETWORKS.get(network, 224)
    model, x = built(network), torch.randn(1, 3, size, size)
    inside = None if dtype == "float32" else getattr(torch, dtype)
    with keeping() as forms:
        fast = lc.optimize(model, x, dtype=inside)
    choices, clock = fast.choices, "process" if torch.get_num_threads() == 1 else "wall"
    alike = right(choices)
    calls = {"chosen": lambda: fast(x), "eager": lambda: model(x)}
    calls |= {name: (lambda form=form: form(x)) for name, form in forms.items() if name in alike}  # type: ignore[misc]
    looks = interleave(near(calls, clock), budget_s=0.3 * seconds, min_rounds=5, max_rounds=20, clock=clock)
    peer = best_peer(looks)
    turns = duel(calls["chosen"], calls[peer], seconds, clock)
    seen = turns.ratio("peer", "chosen", sigmas=SIGMAS)
    return {
        "seconds": choices.seconds,
        "chosen": fast.engine,
        "missed": choices.missed[0],
        "peer": peer,
        "ratio": seen.middle,
        "low": seen.low,
        "high": seen.high,
        "ms": turns.timing("chosen").median_ms,
        "prepared_s": {each.label: each.prepare_s for each in choices if each.prepare_s is not None},
    }


def alone(network: str, dtype: str, threads: int, seconds: float, *, cold: bool) -> dict[str, Any]:
    """Measure a row in a new process."""
    words = ["--row", network, "--dtypes", dtype, "--threads", str(threads), "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory() as folder:
        places = {"LEANCONV_CACHE": f"{folder}/kernels", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.default_budget", *words],
            capture_output=True,
            text=True,
            env=os.environ | (places if cold else {}),
        )
    if done.returncode:
        raise RuntimeError(f"{network}, {dtype}, {threads} threads: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            each["network"],
            each["dtype"],
            each["threads"],
            f"{each['seconds']:.0f}",
            each["missed"] or "none",
            each["chosen"],
            f"{each['ms']:.4g}",
            each["peer"],
            f"{each['ratio']:.3f}",
            f"{each['low']:.3f} {each['high']:.3f}",
        ]
        for each in rows
    ]
    columns = ["network", "dtype", "threads", "s", "not reached", "chosen", "ms", "best peer", "ratio", "between"]
    below = sum(each["ratio"] < LIMIT for each in rows)
    return table(columns, cells, note=f"the default budget of 90 s; {below} of {len(rows)} below {LIMIT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=6.0, help="seconds of timing after each call")
    parser.add_argument("--cold", action="store_true", help="use empty caches for each row, as on a new machine")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.row:
        torch.set_num_threads(arguments.threads[0])
        print(json.dumps(row(arguments.row, arguments.dtypes[0], arguments.seconds)))
        return
    report: dict[str, Any] = {
        "command": command_of("default_budget"), "commit": commit(),
        "machine": describe("cpu") | {"threads": "of each row"}, "cold": arguments.cold, "rows": [],
    }  # fmt: skip
    for network in arguments.networks:
        for threads in arguments.threads:
            for dtype in arguments.dtypes:
                found = alone(network, dtype, threads, arguments.seconds, cold=arguments.cold)
                report["rows"].append({"network": network, "dtype": dtype, "threads": threads} | found)
                write_json(arguments.out, report)
                print(show(report["rows"][-1:]), flush=True)
    print(show(report["rows"]))


if __name__ == "__main__":
    main()
