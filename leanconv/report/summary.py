"""RunSummary: the content of one run folder, read without torch. Missing parts become remarks."""

import csv
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput, LeanconvError
from leanconv.files import read_bytes, read_json, read_toml
from leanconv.report.found import Found
from leanconv.text import one_line
from leanconv.train.tasks.decision import Rule

# Recipe keys that do not change what the run computes.
_NAMING = {"out", "log_every", "workers", "threads", "save_every"}


@dataclass
class RunSummary:
    """The numbers of one run, with NaN or empty containers for unknown ones.

    Attributes:
        name: short printable name, unique in the report.
        model: the model reference.
        recipe: the flat keys of recipe.toml.
        history: column of history.csv -> its numbers, one per epoch.
        costs: params, macs, torchstat_flops, torchstat_madd of one input of the report's shape.
        ms, p95_ms, iqr_ms: latency of one batch in plain PyTorch.
        engine: the engine that `optimize` chose.
        fast_ms, fast_iqr_ms: latency with that engine, timed in turns with plain PyTorch.
        blocks_ms, fast_blocks_ms: the median latency of each block of timing; their spread tells how repeatable it is.
        task: segment or classify, from model.json.
        scores: metric -> value on the report's split.
        classes: class -> {"iou", "dice"} or {"accuracy"}.
        images: name -> Dice, or for a classifier 1 (hit) and 0 (miss).
        found: what it finds and misses on the split, if it was scored here.
        threshold: of the probabilities with which it was scored here; None where the largest logit wins.
        rule: what it reports as a defect.
        confusion: counts, rows = truth.
        remarks: caveats on the numbers.
    """

    name: str
    path: Path = Path()
    model: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    batch: int = 1
    ms: float = math.nan
    p95_ms: float = math.nan
    iqr_ms: float = math.nan
    rounds: int = 0
    engine: str = ""
    fast_ms: float = math.nan
    fast_iqr_ms: float = math.nan
    blocks_ms: tuple[float, ...] = ()
    fast_blocks_ms: tuple[float, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    images: dict[str, float] = field(default_factory=dict)
    found: Found | None = None
    threshold: float | tuple[float, ...] | None = None
    rule: Rule = field(default_factory=Rule)
    confusion: list[list[int]] = field(default_factory=list)
    task: str = "segment"
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = one_line(self.name)  # drawings need printable text

    @property
    def fps(self) -> float:
        """Images per second, from the median latency."""
        return 1e3 * self.batch / self.ms if self.ms > 0 else math.nan

    @property
    def fast_fps(self) -> float:
        """Images per second of the optimised model."""
        return 1e3 * self.batch / self.fast_ms if self.fast_ms > 0 else math.nan

    def value(self, key: str) -> float:
        """Return a number by its key (params, macs, fps, ms, iou, dice, ...), or NaN if unknown."""
        if key in ("fps", "ms", "p95_ms", "iqr_ms", "fast_fps", "fast_ms"):
            return float(getattr(self, key))
        if key in ("recall", "precision") and self.found is not None:
            return self.found.pixels if key == "recall" else self.found.precision
        found = self.costs.get(key, self.scores.get(key))
        return math.nan if found is None else float(found)

    def remark(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.remarks:
            self.remarks.append(text)


def read_run(path: str | Path, name: str = "") -> RunSummary:
    """Read the small files of a run folder. Raises BadInput if the path is no run folder."""
    path = Path(path)
    if not path.is_dir():
        raise BadInput(
            f"{path}: is not a run folder (the folder does not exist); give a folder that `leanconv train` wrote"
        )
    if not any((path / file).is_file() for file in ("recipe.toml", "model.json")):
        raise BadInput(f"{path}: is not a run folder: it has neither recipe.toml nor model.json")
    run = RunSummary(name or os.path.basename(os.path.realpath(path)), path)
    run.recipe = _recipe(run)
    run.model = _model(run)
    run.history = _history(run)
    run.metrics = _metrics(run)
    if not (path / "model.safetensors").is_file():
        run.remark("has no weights (model.safetensors): not finished? `leanconv train --resume` goes on")
    return run


def read_runs(paths: Sequence[str | Path]) -> list[RunSummary]:
    """Read several runs and name them uniquely, by the last part of the path or as many parts as needed."""
    folders = [Path(os.path.realpath(path)) for path in paths]  # `resolve` fails for circular links
    if not folders:
        raise BadInput("a report needs at least one run folder")
    if len(set(folders)) < len(folders):
        raise BadInput(f"a run folder was given twice: {', '.join(map(str, paths))}")
    parts = 1
    while len({folder.parts[-parts:] for folder in folders}) < len(folders):
        parts += 1
    return [
        read_run(path, "/".join(folder.parts[-parts:]).lstrip("/")) for path, folder in zip(paths, folders, strict=True)
    ]


def recipe_differences(runs: Sequence[RunSummary]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return two dicts: differing keys -> one value per run (None if absent), and equal keys -> value."""
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    values = {key: [run.recipe.get(key) for run in runs] for key in keys}
    differing = {key: row for key, row in values.items() if any(value != row[0] for value in row)}
    return differing, {key: row[0] for key, row in values.items() if key not in differing}


def comparability(runs: Sequence[RunSummary]) -> list[str]:
    """Return remarks on differences between the runs beside their models."""
    differing, _ = recipe_differences([run for run in runs if run.recipe])
    remarks = []
    if "data" in differing:
        remarks.append(
            "The runs were trained on different data ("
            + "; ".join(f"{run.name}: {run.recipe['data']}" for run in runs if "data" in run.recipe)
            + "): differences in score are not differences between models alone."
        )
    others = sorted(set(differing) - _NAMING - {"data", "model", "swap", "where", "seed"})
    if others:
        remarks.append(f"The recipes differ in more than the model: {', '.join(others)} (see Recipes).")
    return remarks


def _recipe(run: RunSummary) -> dict[str, Any]:
    path = run.path / "recipe.toml"
    if not os.path.exists(path):
        run.remark("has no recipe.toml: how it was trained is not known")
        return {}
    try:
        return read_toml(path)
    except LeanconvError as error:
        run.remark(f"recipe.toml cannot be read ({error}): how it was trained is not known")
        return {}


def _model(run: RunSummary) -> str:
    try:
        content = read_json(run.path / "model.json")
    except LeanconvError as error:
        run.remark(f"model.json is missing or damaged ({error})")
        content = {}
    if isinstance(content, dict) and content.get("task") == "classify":
        run.task = "classify"
    reference = content.get("model", content.get("reference")) if isinstance(content, dict) else content
    swap = run.recipe.get("swap")
    return str(reference or run.recipe.get("model", "unknown")) + (f", swapped to {swap}" if swap else "")


def _history(run: RunSummary) -> dict[str, list[float]]:
    """Read the columns of history.csv. A last line that a killed run cut short is skipped."""
    path = run.path / "history.csv"
    if not os.path.exists(path):
        run.remark("has no history.csv: no training curves")
        return {}
    try:
        text = read_bytes(path).decode()
        rows = [row for row in csv.reader(text.splitlines(keepends=True)) if row]
    except (LeanconvError, ValueError, csv.Error) as error:
        run.remark(f"history.csv cannot be read ({error})")
        return {}
    if len(rows) < 2:
        run.remark("history.csv is empty: stopped before the end of the first epoch?")
        return {}
    header, lines = rows[0], [row for row in rows[1:] if len(row) == len(rows[0])]
    if len(lines) < len(rows) - 1:
        run.remark("history.csv has a damaged line (left out): the run was cut off?")
    return {column: [_number(line[i]) for line in lines] for i, column in enumerate(header)}


def _metrics(run: RunSummary) -> dict[str, Any]:
    try:
        content = read_json(run.path / "metrics.json")
    except LeanconvError as error:
        missing = not (run.path / "metrics.json").exists()
        run.remark("has no metrics.json: killed before its end?" if missing else f"metrics.json is damaged ({error})")
        return {}
    return content if isinstance(content, dict) else {}


def numbers(stored: dict[str, Any]) -> dict[str, float]:
    """Keep the finite numbers among values from an untrusted file."""
    return {
        str(key): float(value)
        for key, value in stored.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
