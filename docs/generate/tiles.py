"""The section on what the cost model of the kernels chooses, from the files of `benchmarks/cpu_tiles.py`."""

from typing import Any

from docs.generate.markdown import page, table
from docs.generate.measured import kind_of_machine, machine

MODELS = {"calibrated": "calibrated", "neutral": "neutral speeds", "before": "constants before"}
NEAR = 0.97  # of the best: a choice below is one that costs time


def tiles(files: dict[str, dict[str, Any]]) -> str:
    """How near the choice of each model comes to the best, on each kind of machine."""
    if not files:
        return ""
    parts = [
        "## What the cost model chooses, against the best of its first choices",
        "Register tiles and algorithms, timed in turns. A figure is the share of the best one's speed that the choice "
        "reaches, worst layer first. Calibrated: with the speeds that were measured on that machine. Neutral: without "
        "a calibration. Before: the constants of the code until there was one.",
    ]
    for stem, content in files.items():
        rows = sorted(content["rows"], key=lambda row: row["calibrated"])
        cells = [
            [row["layer"], row["best"], row["choice"]["calibrated"], *(f"{row[model]:.2f}" for model in MODELS)]
            for row in rows
        ]
        near = ", ".join(f"{words} {sum(row[m] >= NEAR for row in rows)}" for m, words in MODELS.items())
        parts += [
            f"### The cost model on {kind_of_machine(content)}",
            table(["layer", "best", "calibrated choice", *MODELS.values()], cells, "lllrrr"),
            f"At least {NEAR:.0%} of the best, of {len(rows)} layers: {near}. "
            f"{machine(content)}; `{content['command']}`, `{stem}.json`.",
        ]
    return page(*parts).rstrip()
