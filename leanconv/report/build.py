"""Build a report from run folders: load, count, time, score, draw. Missing parts of a run become a remark."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.errors import BadInput, LeanconvError, UnknownName
from leanconv.files import write_atomic
from leanconv.measure.device import describe
from leanconv.registry import nearest
from leanconv.report.document import Report
from leanconv.report.page import render
from leanconv.report.score import draw_cases, score_classes, score_masks, stored_scores
from leanconv.report.speed import count_and_time, image_size
from leanconv.report.summary import RunSummary, read_runs
from leanconv.runs import RunFolder
from leanconv.train.data.samples import Samples, open_data
from leanconv.train.data.splits import SPLITS

CASES = 9
Say = Callable[[str], object]
Run = str | Path | RunFolder


def build_report(runs: Sequence[Run], out: str | Path, **options: Any) -> Path:
    """Compare trained runs in one HTML file that opens offline. `options`: the arguments of `compare_runs`.

    Raises: BadInput for a path that is no run folder, or an `out` that cannot be written.
    """
    return write_report(compare_runs(runs, **options), out)


def write_report(report: Report, out: str | Path) -> Path:
    """Write a report's HTML page to `out` atomically."""
    return write_atomic(out, render(report))


def compare_runs(
    runs: Sequence[Run],
    *,
    data: str | None = None,
    split: str = "test",
    threads: int | None = None,
    device: str = "cpu",
    cases: int | None = None,
    budget_s: float = 10.0,
    optimize_s: float = 0.0,
    trust_code: bool = False,
    say: Say | None = None,
) -> Report:
    """Count, time and score trained runs. Ratios are relative to the first.

    Args:
        runs: run folders (paths or `RunFolder`s).
        data: a data reference for scores and pictures (default: the first run's training data).
        split: train, val or test.
        threads: CPU threads for timing and scoring (default: torch's choice).
        device: the device that runs the models.
        cases: most pictures (default: 9 for segmentation; classifiers have none).
        budget_s: seconds of timing in all (0: no timing).
        optimize_s: seconds of `optimize` for each model, which is then timed in both forms (0: no `optimize`).
        trust_code: run the Python file that a run's model.json names.
        say: called with a line before each slow part.
    Raises: BadInput for a path that is no run folder, or for a given `data` that cannot be read. UnknownName for an
            unknown split.
    """
    if not runs:
        raise BadInput("a report needs at least one run folder")
    if (cases or 0) < 0 or budget_s < 0 or optimize_s < 0:
        raise BadInput(
            f"cannot report cases={cases}, budget_s={budget_s}, optimize_s={optimize_s}: none may be below 0"
        )
    if split not in SPLITS:
        raise UnknownName(f"split {split!r}{nearest(split, list(SPLITS))}: one of {', '.join(SPLITS)}")
    say = say or (lambda text: None)
    summaries = read_runs([Path(run) for run in runs])
    if cases and all(run.task == "classify" for run in summaries):
        raise BadInput(f"cases={cases}: pictures show masks, and these runs classify whole images; leave it out")
    report = Report(summaries, split=split, title=_title(summaries))
    with _threads(threads):
        models = _load(summaries, device, trust_code, say)
        sets = _open(report, models, data)
        if models:
            report.image_size = report.image_size if sets else image_size(report, None)
            count_and_time(report, models, device, budget_s, optimize_s, say)
        if sets:
            score_masks(report, models, sets, say)
            draw_cases(report, models, sets, CASES if cases is None else cases, say)
        elif report.data and report.runs[0].task == "classify":
            score_classes(report, models, named=data is not None, say=say)
        for run in summaries:
            stored_scores(run, split)
        report.environment = {**describe(device), "weights": "the run folder's best, eval mode"}
    return report


def _title(runs: Sequence[RunSummary]) -> str:
    names = [run.name for run in runs]
    if len(names) == 1:
        return f"The run {names[0]}"
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) <= 3 else f"{len(names)} models compared"


@contextmanager
def _threads(threads: int | None) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load(runs: Sequence[RunSummary], device: str, trust_code: bool, say: Say) -> dict[int, nn.Module]:
    """Return index of the run -> its network in eval mode. A run that cannot be loaded gets a remark instead."""
    models = {}
    for index, run in enumerate(runs):
        say(f"load {run.name}")
        try:
            models[index] = RunFolder.open(run.path).load_model(trust_code=trust_code).to(device)
        except LeanconvError as error:
            run.remark(f"could not be loaded, so nothing of it was measured: {error}")
    return models


def _open(report: Report, models: dict[int, nn.Module], data: str | None) -> dict[int, Samples]:
    """Open the images with masks: index of the run -> its set. Empty with a remark if there are none."""
    asked = data or next((str(run.recipe["data"]) for run in report.runs if run.recipe.get("data")), None)
    if asked is None:
        report.remarks.append("No recipe names its data, and no --data was given: no images were scored.")
        return {}
    if any(run.task != report.runs[0].task for run in report.runs):
        report.remarks.append("The runs were trained for different tasks: no images were scored.")
        return {}
    report.data = asked
    if report.runs[0].task == "classify" or not models:
        return {}
    try:
        samples, sets = _samples(report, models, asked)
        report.image_size = image_size(report, samples)
    except LeanconvError as error:
        if data is not None:
            raise
        report.data = ""
        report.remarks.append(f"The data {asked} cannot be read, so no images are shown: {error}")
        return {}
    if samples.note:
        report.remarks.append(samples.note)
    report.images, report.classes = len(samples), tuple(samples.classes)
    return sets


def _samples(report: Report, models: dict[int, nn.Module], asked: str) -> tuple[Samples, dict[int, Samples]]:
    """Open the images, once for each range of 16-bit values. Returns one set, and the set of each model."""
    stored = {index: RunFolder.open(report.runs[index].path).read_model() for index in models}
    reads = {index: (model.bits, model.classes or None) for index, model in stored.items()}
    sets = {
        each: open_data(asked, report.split, bits=each[0], classes=each[1])
        for each in dict.fromkeys(reads.values() or [(None, None)])
    }
    return next(iter(sets.values())), {index: sets[each] for index, each in reads.items()}
