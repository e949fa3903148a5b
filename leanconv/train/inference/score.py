"""The scores of a finished run: read back from its folder, or measured again on any data."""

import shlex
import warnings
from collections.abc import Callable
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
from leanconv.train.data.labelled import Labelled
from leanconv.train.inference.serving import Left, Serve, plainly
from leanconv.train.recipe import Recipe
from leanconv.train.tasks import classify
from leanconv.train.tasks.evaluate import Scores, best_threshold, evaluate, largest_wins
from leanconv.train.tasks.task import open_run_data, run_task


def score_run(
    run: str | Path,
    *,
    data: str = "",
    split: str = "test",
    threshold: float | None = None,
    device: str = "cpu",
    trust_code: bool = False,
    say: Callable[[str], object] = str,
    progress: bool = False,
    serve: Serve = plainly,
) -> "Scores | classify.Accuracy":
    """The scores of a run's best weights on a split; checks every file of it first.

    Args:
        data: a data reference; default: what the run was trained on.
        threshold: default: the stored one; where none is stored, it is chosen on the validation split of the run's own
            data, and stored.
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
    if threshold is not None and run_task(folder) == "classify":
        raise BadInput(f"threshold={threshold} is for masks; {run} tells whole images apart by the largest logit")
    if threshold is not None and len(classes := folder.read_model().classes) > 2:
        raise BadInput(largest_wins(threshold, len(classes)))
    samples = open_run_data(folder, data or own, split)
    model, stored = load_scored(folder, trust_code=trust_code)
    model = model.to(torch.device(device))
    samples.check(progress=progress)
    for remark in filter(None, [samples.note, *samples.remarks()]):
        say(remark)
    if threshold is None:
        threshold = stored
    if threshold is None and not isinstance(samples, Labelled) and len(samples.classes) == 2:
        others = open_run_data(folder, own or data, "val")
        with serve(model, folder.engine, left := Left(len(others))) as fast:
            threshold = best_threshold(fast, others, on_images=left.done, batch=_batch(fast, model))
        if threshold is not None:
            store_threshold(folder, threshold, of=model)
    with serve(model, folder.engine, left := Left(len(samples))) as fast:
        if isinstance(samples, Labelled):
            return classify.evaluate(fast, samples, on_images=left.done)
        return evaluate(fast, samples, threshold=threshold, on_images=left.done, batch=_batch(fast, model))


def _batch(fast: nn.Module, model: nn.Module) -> int:
    """Images at a time. An engine is prepared for one size of batch: one image, as in prediction."""
    return 8 if fast is model else 1


def load_scored(folder: RunFolder, *, trust_code: bool = False) -> tuple[nn.Module, float | None]:
    """The run's network in eval mode, and the threshold chosen for exactly these weights, or None."""
    return folder.load_with(lambda: stored_threshold(folder), trust_code=trust_code)


def stored_threshold(folder: RunFolder) -> float | None:
    """The threshold chosen on validation images, or None. Raises BadCheckpoint for an invalid one."""
    metrics = read_metrics(folder)
    value = metrics.get("threshold")
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise BadCheckpoint(f"{folder.metrics}: threshold={value!r}: must be a number between 0 and 1")
    return float(value)


def store_threshold(folder: RunFolder, threshold: float, *, of: nn.Module) -> None:
    """Put the threshold into metrics.json, beside what stands there, if the folder still has the weights it is `of`.

    Where another process trains there, or nothing can be written, it is not kept, with a warning.
    """
    try:
        with writing(folder.path, "leanconv eval"):
            if holds_weights(of, folder.weights):
                write_json(folder.metrics, {**read_metrics(folder), "threshold": threshold})
    except BadInput as error:
        warnings.warn(f"the threshold {threshold:g} that was chosen is not kept: {error}", stacklevel=2)


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


def summary(folder: RunFolder) -> str:
    """The final scores of a run as a table, and the commands that come next."""
    metrics = read_metrics(folder)
    head, names, said = _scores_of(metrics)
    rows = [
        [split, metrics[split]["images"], *(f"{metrics[split][name]:.4f}" for name in names)]
        for split in ("val", "test")
        if split in metrics
    ]
    threshold = metrics.get("threshold")
    last = metrics.get("keep") == "last"
    note = (
        "the weights after the last step; "
        if last
        else f"epoch {metrics.get('best_epoch')} of the run was best on val; "
    )
    note += "the largest logit wins." if threshold is None else f"threshold {threshold:.2f} chosen on val."
    path = one_line(shlex.quote(str(folder.path)))
    exported = one_line(shlex.quote(str(folder.export / "model.onnx")))
    return "\n".join(
        [
            table(["split", "images", *head], rows, title=str(folder.path), note=note),
            "",
            said,
            "Next:",
            f"  leanconv eval {path} --split test",
            f"  leanconv predict {path} IMAGE...",
            f"  leanconv export {path} {exported}{'' if 'val' in metrics else ' --split test'}",
            f"  leanconv report {path}",
        ]
    )


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
