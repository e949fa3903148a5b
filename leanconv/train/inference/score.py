"""The scores of a finished run: read back from its folder, or measured again on any data."""

import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.files import read_json, write_json
from leanconv.runs import RunFolder
from leanconv.runs.lock import writing
from leanconv.runs.weights import holds_weights
from leanconv.table import table
from leanconv.text import one_line
from leanconv.train.data.image_reader import listing
from leanconv.train.data.labelled import Labelled
from leanconv.train.inference.serving import Left, Serve, plainly
from leanconv.train.recipe import Recipe
from leanconv.train.tasks import classify
from leanconv.train.tasks.decision import Decision, Rule, Threshold
from leanconv.train.tasks.evaluate import Scores, evaluate
from leanconv.train.tasks.segment import Segmentation
from leanconv.train.tasks.task import open_run_data, run_task

_SHOWN, _AT_BEST = (0.1, 0.3, 0.5, 0.7, 0.9), ("dice", "precision", "recall")
_MOST_ROWS = 20  # classes that a table of curves shows


def score_run(
    run: str | Path,
    *,
    data: str = "",
    split: str = "test",
    threshold: float | str | None = None,
    min_area: int | None = None,
    merge: int | None = None,
    device: str = "cpu",
    trust_code: bool = False,
    say: Callable[[str], object] = str,
    progress: bool = False,
    serve: Serve = plainly,
) -> "Scores | classify.Accuracy":
    """The scores of a run's best weights on a split; checks every file of it first.

    Args:
        data: a data reference; default: what the run was trained on.
        threshold: a number, or text like "scratch=0.4,pit=0.6"; default: the stored ones. A run that was killed before
            it chose has none: they are chosen on the validation split of its own data, and stored.
        min_area, merge: of the defects, in pixels; default: the run's own.
        say: gets a line each on the origin of the split and on how its files were read.
        progress: draw a bar on a terminal.
        serve: gives the form of the network that is scored, which must agree with it; default: the network itself.
    Raises: BadInput for a path that is no run or a file that cannot be used; BadFiles for several of them;
        BadCheckpoint for a damaged run; UntrustedCode for somebody's Python.
    """
    folder = RunFolder.open(run)
    own = Recipe.read(folder.recipe).data if folder.recipe.is_file() else ""
    if not (data or own):
        raise BadInput(f"{run} does not say what it was trained on: give --data")
    if run_task(folder) == "classify":
        for key, value in {"threshold": threshold, "min_area": min_area, "merge": merge}.items():
            if value is not None:
                raise BadInput(f"{key}={value} is for masks; {run} tells whole images apart by the largest logit")
    samples = open_run_data(folder, data or own, split)
    model, stored = load_decided(folder, trust_code=trust_code)
    decision = replace(stored, classes=tuple(samples.classes)).asked(threshold, min_area, merge)
    model = model.to(torch.device(device))
    samples.check(progress=progress)
    for remark in filter(None, [samples.note, *samples.remarks()]):
        say(remark)
    if not isinstance(samples, Labelled) and threshold is None and not _has_chosen(folder):
        others = open_run_data(folder, own or data, "val")
        task = Segmentation(decision.classes, rule=_rule(folder, decision.classes))
        with serve(model, folder.engine, left := Left(2 * len(others))) as fast:
            chosen = task.choose(fast, others, on_images=left.done, batch=_batch(fast, model))
        store_chosen(folder, chosen.stored, of=model)
        decision = chosen.decision.asked(None, min_area, merge)
    with serve(model, folder.engine, left := Left(len(samples))) as fast:
        if isinstance(samples, Labelled):
            return classify.evaluate(fast, samples, on_images=left.done)
        return evaluate(
            fast,
            samples,
            threshold=decision.threshold,
            rule=decision.rule,
            on_images=left.done,
            batch=_batch(fast, model),
        )


def _has_chosen(folder: RunFolder) -> bool:
    return bool({"threshold", "thresholds"} & read_metrics(folder).keys())


def _batch(fast: nn.Module, model: nn.Module) -> int:
    """Images at a time. An engine is prepared for one size of batch: one image, as in prediction."""
    return 8 if fast is model else 1


def load_scored(folder: RunFolder, *, trust_code: bool = False) -> tuple[nn.Module, Threshold]:
    """The run's network in eval mode, and the threshold chosen for exactly these weights, or None."""
    return folder.load_with(lambda: stored_threshold(folder), trust_code=trust_code)


def load_decided(folder: RunFolder, *, trust_code: bool = False) -> tuple[nn.Module, Decision]:
    """The run's network in eval mode, and how exactly these weights decide."""
    return folder.load_with(lambda: stored_decision(folder), trust_code=trust_code)


def stored_decision(folder: RunFolder) -> Decision:
    """How a run decides: names of the classes, thresholds, smallest defect, merging, verdict.

    The names are model.json's. Thresholds, smallest area and merging are those that metrics.json has of the validation
    images; the recipe.toml beside it goes before, and has the rule of the verdict. A run of an older version has none
    of the last three: every component is a defect, and fails its picture.
    Raises: BadCheckpoint for an invalid number.
    """
    classes, metrics = folder.read_model().classes, read_metrics(folder)
    chosen = {key: metrics.get(key, 0) for key in ("min_area", "merge")}
    for key, value in chosen.items():
        if type(value) is not int or value < 0:
            raise BadCheckpoint(f"{folder.metrics}: {key}={str(value)[:40]}: must be pixels, at least 0")
    return Decision(classes, stored_threshold(folder), _rule(folder, classes).chosen(**chosen))


def _rule(folder: RunFolder, classes: Sequence[str]) -> Rule:
    return Rule.of(Recipe.read(folder.recipe), classes) if folder.recipe.is_file() else Rule()


def stored_threshold(folder: RunFolder) -> Threshold:
    """The threshold chosen on validation images, of more than two classes one each, or None.

    Raises: BadCheckpoint for an invalid one.
    """
    metrics, names = read_metrics(folder), folder.read_model().classes[1:]
    each = metrics.get("thresholds")
    if metrics.get("threshold") is None and isinstance(each, dict) and len(each) > 1:
        if set(each) != set(names):
            raise BadCheckpoint(f"{folder.metrics}: thresholds of {listing(each)}; model.json has {listing(names)}")
        return tuple(_probability(folder, f"threshold of {name}", each[name]) for name in names)
    value = metrics.get("threshold")
    return None if value is None else _probability(folder, "threshold", value)


def _probability(folder: RunFolder, what: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise BadCheckpoint(f"{folder.metrics}: {what}={value!r}: must be a number between 0 and 1")
    return float(value)


def store_chosen(folder: RunFolder, chosen: dict[str, Any], *, of: nn.Module) -> None:
    """Put what was chosen into metrics.json, beside what stands there, if the folder still has the weights it is `of`.

    Where another process trains there, or nothing can be written, it is not kept, with a warning.
    """
    try:
        with writing(folder.path, "leanconv eval"):
            if holds_weights(of, folder.weights):
                write_json(folder.metrics, {**read_metrics(folder), **chosen})
    except BadInput as error:
        warnings.warn(f"the thresholds that were chosen are not kept: {error}", stacklevel=2)


def read_metrics(folder: RunFolder) -> dict[str, Any]:
    """metrics.json; empty if there is none yet. Raises BadCheckpoint for another kind of file."""
    if not folder.metrics.is_file():
        return {}
    try:
        metrics = read_json(folder.metrics)
    except BadInput as error:
        raise BadCheckpoint(str(error)) from error
    if not isinstance(metrics, dict):
        raise BadCheckpoint(f"{folder.metrics}: holds {type(metrics).__name__}, not an object")
    return metrics


def summary(folder: RunFolder, dense: RunFolder | None = None) -> str:
    """The final scores of a run as a table, beside those of its dense twin, and the commands that come next."""
    scored, said = _table(folder)
    tables = [scored] if dense is None else [scored, "", _table(dense)[0]]
    path, twin = (one_line(shlex.quote(str(each.path))) if each else "" for each in (folder, dense))
    exported = one_line(shlex.quote(str(folder.export / "model.onnx")))
    on = "" if "val" in read_metrics(folder) else " --split test"
    return "\n".join(
        [
            *tables,
            "",
            said,
            "Next:",
            f"  leanconv report {f'{twin} ' if twin else ''}{path}",
            f"  leanconv eval {path} --split test",
            f"  leanconv predict {path} IMAGE...",
            f"  leanconv export {path} {exported}{on}",
        ]
    )


def _table(folder: RunFolder) -> tuple[str, str]:
    """The final scores of one run, and what their names mean."""
    metrics = read_metrics(folder)
    head, names, said = _scores_of(metrics)
    rows = [
        [split, metrics[split]["images"], *(f"{metrics[split][name]:.4f}" for name in names)]
        for split in ("val", "test")
        if split in metrics
    ]
    last = metrics.get("keep") == "last"
    note = (
        "the weights after the last step; "
        if last
        else f"epoch {metrics.get('best_epoch')} of the run was best on val; "
    )
    note += _chosen(metrics)
    parts = [table(["split", "images", *head], rows, title=str(folder.path), note=note)]
    parts += [f"\n{part}" for part in (_by_class(metrics), _curves(metrics)) if part]
    return "\n".join(parts), said


def _chosen(metrics: dict[str, Any]) -> str:
    """The thresholds and the rule of defects, in words."""
    each = metrics.get("thresholds") or {}
    if len(each) > 1:
        said = f"thresholds chosen on val: {', '.join(f'{name} {value:.2f}' for name, value in each.items())}."
    elif metrics.get("threshold") is None:
        return "the largest logit wins."
    else:
        said = f"threshold {metrics['threshold']:.2f} chosen on val."
    if "min_area" not in metrics:
        return said
    return f"{said} Defects have at least {metrics['min_area']} px; merge {metrics['merge']} px."


def _by_class(metrics: dict[str, Any]) -> str:
    """A row for each class of each split: IoU, Dice, and its defects as objects; empty for a classifier."""
    rows: list[list[object]] = []
    for split in ("val", "test"):
        scores = metrics.get(split, {})
        found = scores.get("objects", {}).get("classes", {})
        for name, row in found.items():
            pixels = scores["classes"][name]
            shares = [pixels["iou"], pixels["dice"], row["precision"], row["recall"]]
            shown = ["-" if value is None else f"{value:.4f}" for value in shares]
            rows.append([split, name, *shown[:2], row["true"], row["reported"], *shown[2:]])
    heads = ["split", "class", "IoU", "Dice", "true defects", "reported", "precision", "recall"]
    return table(heads, rows) if rows else ""


def _curves(metrics: dict[str, Any]) -> str:
    """What each class's threshold was chosen from: Dice on val at some of them, and the scores at the chosen one."""
    curve, chosen = metrics.get("threshold_curve"), metrics.get("thresholds", {})
    if not curve:
        return ""
    grid, rows = curve["thresholds"], list[list[object]]()

    def place(value: float) -> int:  # the nearest: users write thresholds of their own into metrics.json
        return min(range(len(grid)), key=lambda i: abs(grid[i] - value))

    for name, found in list(curve["classes"].items())[:_MOST_ROWS]:
        best = place(chosen[name])
        dice = [f"{found['dice'][place(value)]:.4f}" for value in _SHOWN]
        shares = ["-" if found[key][best] is None else f"{found[key][best]:.4f}" for key in _AT_BEST]
        rows.append([name, *dice, f"{chosen[name]:.2f}", *shares])
    heads = [f"Dice at {value:.1f}" for value in _SHOWN]
    return table(["threshold on val", *heads, "chosen", "Dice", "precision", "recall"], rows)


def _scores_of(metrics: dict[str, Any]) -> tuple[list[str], list[str], str]:
    """The heads of the columns, their keys in a split's scores, and what they mean for these classes."""
    classes = next((list(metrics[split]["classes"]) for split in ("val", "test") if split in metrics), ["", ""])
    if metrics.get("task") == "classify":
        said = "top-k: share of the images whose class is among the k most probable ones."
        return ["top-1", f"top-{max(1, min(5, len(classes) - 1))}"], ["top1", "top5"], said
    of = f"the class {classes[1]}" if len(classes) == 2 else f"the mean of all classes but {classes[0]}"
    said = f"IoU, Dice: {of} over all pixels; mean IoU: over classes, {classes[0]} too; image: mean over images."
    heads = ["IoU", "Dice", "mean IoU", "image IoU", "image Dice"]
    return heads, ["iou", "dice", "mean_iou", "image_iou", "image_dice"], said
