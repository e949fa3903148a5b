"""What `leanconv lean` makes of a trained network: its score before, right after the swap and recovered; its speed.

    python -m benchmarks.lean_networks RUN [--to splconv ... | --faster 2x ...] [--epochs 10] [--fresh]

RUN: the run folder of a trained network; its data is used. Each goal is a call of `leanconv lean`, in a folder of its
own under `--runs`: dense score, plan, fit, recovery with the dense network as teacher. Both networks are timed in
turns, each on its best engine. `--fresh` trains the same recipe for as many epochs from fresh layers too: that tells
what the fit and the old weights are worth. A killed benchmark goes on where it stopped. Every finished row updates
benchmarks/results/lean_networks.json; a row of the same run, goal, epochs and machine is replaced.
"""

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any

import torch

from benchmarks.operators import commit
from leanconv import recipes
from leanconv.files import read_json, write_json
from leanconv.measure.device import describe
from leanconv.planner.lean.asked import Asked, factor
from leanconv.planner.lean.whole import make_lean
from leanconv.table import table
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "lean_networks.json"
SPLIT = "test"


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    old = read_json(given.out) if given.out.exists() else {}
    rows = {_key(row): row for row in old.get("rows", [])}
    for goal in [*({"to": each} for each in given.to), *({"faster": factor(each)} for each in given.faster)]:
        row = measured(given.run, goal, given.epochs, given.lr, Path(given.runs), input_size=given.size)
        if given.fresh and "to" in goal:
            row["fresh"] = from_fresh(given.run, goal["to"], given.epochs, given.lr, Path(given.runs))
        row |= {"machine": describe(), "command": _command(given, goal), "commit": commit()}
        rows[_key(row)] = row
        write_json(given.out, {"rows": list(rows.values())})
        print(show([rows[_key(row)]]), flush=True)


def measured(run: str, goal: dict[str, Any], epochs: int, lr: float, runs: Path, *, input_size: int) -> dict[str, Any]:
    """The figures of one call of `leanconv lean`; of its folder, where it is done already."""
    recipe = Recipe.read(Path(run) / "recipe.toml")
    shape = (1, 3, input_size, input_size) if input_size else ()
    threads = torch.get_num_threads()
    out = runs / _name(run, *map(str, goal.values()), f"{epochs}-epochs", *([f"lr-{lr:g}"] if lr else []))
    report = make_lean(Asked(model=run, out=str(out), epochs=epochs, lr=lr, input=shape, threads=threads, **goal))
    stages = report.stages
    lean = stages.get("recover") or stages["fit"]
    race = report.race or {}
    return {
        "network": read_json(Path(run) / "model.json")["reference"], "data": Path(recipe.data.partition("?")[0]).name,
        "dense_epochs": recipe.epochs, "goal": goal.get("to") or f"{goal['faster']:g}x", "epochs": epochs, "lr": lr,
        "measure": report.facts["measure"], "judged": report.facts["judged"], "refused": report.refusal,
        "operators": stages["plan"]["operators"], "layers_kept": stages["plan"]["kept"],
        "dense": stages["dense"]["score"], "fitted": stages["fit"]["score"],
        "recovered": stages["recover"]["score"] if "recover" in stages else None,
        "macs": [stages["dense"]["macs"], lean["macs"]], "params": [stages["dense"]["params"], lean["params"]],
        "input": race.get("where"), "speed": race.get("ratio"),
        "engines": [race[key]["engine"] for key in ("dense", "lean")] if race else None,
        "load": os.getloadavg()[0], "seconds": {name: stage["seconds"] for name, stage in stages.items()},
    }  # fmt: skip


def from_fresh(run: str, operator: str, epochs: int, lr: float, runs: Path) -> float:
    """The score after the same recovery from fresh layers."""
    out = runs / _name(run, operator, f"{epochs}-epochs", "fresh", *([f"lr-{lr:g}"] if lr else []))
    batch = min(64, Recipe.read(Path(run) / "recipe.toml").batch)  # as in `leanconv lean`
    values = {key: value for key, value in recipes.read("recover").items() if key != "fit_images"}
    words = [f"teacher={run}", f"swap={operator}", "init=fresh", f"out={out}", f"epochs={epochs}", f"batch={batch}"]
    folder = fit(Recipe.of(values, [*words, *([f"lr={lr}"] if lr else [])]), resume=(out / "last").is_dir())
    found = read_json(folder.metrics)[SPLIT]
    return float(found["top1"] if "top1" in found else found["dice"])


def show(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["network"], row["data"], row["goal"], row["epochs"], f"{row['dense']:.4f}", f"{row['fitted']:.4f}",
            *("-" if row.get(key) is None else f"{row[key]:.4f}" for key in ("recovered", "fresh")),
            f"{row['speed']['middle']:.2f}" if row["speed"] else "-", row["refused"],
        ]
        for row in rows
    ]  # fmt: skip
    head = [
        "network",
        "data",
        "goal",
        "epochs",
        "dense",
        "fitted",
        "recovered",
        "from fresh",
        "times as fast",
        "refused",
    ]
    return table(head, cells)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    same = tuple(row[key] for key in ("network", "data", "dense_epochs", "goal", "epochs", "lr"))
    return *same, *(row["machine"][key] for key in ("name", "isa", "threads"))


def _name(*words: str) -> str:
    return "-".join(re.sub(r"\W+", "-", Path(word).name if "/" in word else word).strip("-") for word in words)


def _command(given: argparse.Namespace, goal: dict[str, Any]) -> str:
    words = ["--to", goal["to"]] if "to" in goal else ["--faster", f"{goal['faster']:g}x"]
    words += ["--epochs", str(given.epochs), *(["--lr", f"{given.lr:g}"] if given.lr else [])]
    words += [*(["--size", str(given.size)] if given.size else []), *(["--fresh"] if given.fresh else [])]
    return shlex.join(["python", "-m", "benchmarks.lean_networks", "RUN", *words])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--to", nargs="+", default=[], metavar="OP", help="one operator in all layers, each a row")
    parser.add_argument("--faster", nargs="+", default=[], metavar="2x", help="a search for this speed, each a row")
    parser.add_argument("--epochs", type=int, default=1, help="of the recovery")
    parser.add_argument("--lr", type=float, default=0.0, help="of the recovery (default: the recipe's)")
    parser.add_argument("--size", type=int, default=0, help="side of the timed input (default: the run's)")
    parser.add_argument("--fresh", action="store_true", help="the same recovery from fresh layers too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default="runs/benchmarks/lean", help="folder of these networks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
