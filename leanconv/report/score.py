"""Score each run's model on the same images, and draw some of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from leanconv.errors import LeanconvError
from leanconv.report.document import Report
from leanconv.report.found import Found
from leanconv.report.overlays import Case, case, choose
from leanconv.report.speed import without_type
from leanconv.report.summary import RunSummary, numbers
from leanconv.runs import RunFolder
from leanconv.train.data.augment import to_float
from leanconv.train.data.padding import pad_to
from leanconv.train.data.samples import Samples
from leanconv.train.inference.score import stored_decision
from leanconv.train.tasks import classify
from leanconv.train.tasks.decision import Threshold, predicted_classes
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.task import open_run_data

Say = Callable[[str], object]


def score_masks(report: Report, models: dict[int, nn.Module], sets: dict[int, Samples], say: Say) -> None:
    """Compute IoU, Dice and what is found of each model. A run that cannot be scored gets a remark instead."""
    for index, model in models.items():
        run = report.runs[index]
        say(f"score {run.name} on {len(sets[index])} images")
        try:
            stored = stored_decision(RunFolder.open(run.path))
            scores = evaluate(model, sets[index], threshold=stored.threshold, rule=stored.rule)
        except (LeanconvError, RuntimeError) as error:
            run.remark(f"could not be scored on {report.data}: {without_type(error)}")
            continue
        keep(run, scores.to_dict())
        names = _unique(scores.names)
        run.images = dict(zip(names, scores.image_dices, strict=True))
        run.found = Found(tuple(names), scores.confusion.numpy())
        run.threshold, run.rule = scores.threshold, stored.rule
        if stored.threshold is None and scores.threshold is not None:
            run.remark("has no stored threshold: 0.5 was used")


def score_classes(report: Report, models: dict[int, nn.Module], *, named: bool, say: Say) -> None:
    """Compute top-1, class accuracies and confusion matrix of each classifier on the same images.

    Raises: LeanconvError for data that cannot be read, if it was `named` by the caller.
    """
    for index, model in models.items():
        run = report.runs[index]
        say(f"score {run.name}")
        try:
            samples = open_run_data(RunFolder.open(run.path), report.data, report.split)
            scores = classify.evaluate(model, samples)
        except (LeanconvError, RuntimeError) as error:
            if named and isinstance(error, LeanconvError) and not report.images:
                raise
            run.remark(f"could not be scored on {report.data}: {without_type(error)}")
            continue
        if samples.note and samples.note not in report.remarks:
            report.remarks.append(samples.note)
        report.images, report.classes = len(samples), samples.classes
        found = scores.to_dict()
        keep(run, found)
        run.confusion = found.get("confusion", [])
        if not run.confusion:
            known = classify.MATRIX_CLASSES
            run.remark(f"has {len(scores.classes)} classes; a confusion matrix is drawn for at most {known}")
        hits = (scores.ranks == 0).float().tolist()
        run.images = dict(zip(_unique(scores.names), hits, strict=True))


def stored_scores(run: RunSummary, split: str) -> None:
    """Use the scores that training stored if the run was not scored here."""
    stored = run.metrics.get(split)
    if run.scores or not isinstance(stored, dict):
        return
    keep(run, stored)
    if run.scores:
        run.remark(f"its scores are those that training stored for its own {split} split")


def keep(run: RunSummary, scores: dict[str, Any]) -> None:
    """Take the numbers of a split's scores: whole ones, those of each class, and those of separate defects."""
    run.scores = numbers(scores)
    classes, objects = scores.get("classes"), scores.get("objects")
    if isinstance(classes, dict):
        run.classes = {str(name): numbers(value) for name, value in classes.items() if isinstance(value, dict)}
    if isinstance(objects, dict):
        run.scores |= {f"object_{key}": value for key, value in numbers(objects).items()}


def draw_cases(report: Report, models: dict[int, nn.Module], sets: dict[int, Samples], limit: int, say: Say) -> None:
    """Draw at most `limit` images: worst, typical and best ones."""
    scored = [run for run in report.runs if run.found is not None]
    if not scored or limit < 1:
        return
    say("draw")
    first = scored[0].found
    assert first is not None  # by the line above
    for name, group in choose([run.images for run in report.runs], limit, first.defective):
        report.cases.append(_case(report, models, sets, first.names.index(name), name, group))


def _case(
    report: Report, models: dict[int, nn.Module], sets: dict[int, Samples], place: int, name: str, group: str
) -> Case:
    sample = next(iter(sets.values()))[place]
    guesses = []
    for index, model in models.items():
        run = report.runs[index]
        if name in run.images:
            guess = _predict(model, sets[index][place].image, run.threshold)
            guesses.append((index, run.name, guess, run.images[name], run.rule))
    image, truth = sample.image.numpy(), sample.mask.numpy().astype(np.uint8)
    return case(name, group, image, truth, guesses, report.classes)


def _predict(model: nn.Module, image: torch.Tensor, threshold: Threshold) -> Any:
    """Predict `H W` class indices of a whole image `3 H W`, exactly as `evaluate` does."""
    device = next(model.parameters()).device
    h, w = image.shape[-2:]
    with torch.inference_mode():
        logits = model(pad_to(to_float(image[None].to(device)), getattr(model, "size_multiple", 32)))[..., :h, :w]
    return predicted_classes(logits, threshold)[0].cpu().numpy().astype(np.uint8)


def _unique(names: Sequence[str]) -> list[str]:
    """Make image names unique: append the index in the data set to repeated ones."""
    times = Counter(names)
    return [name if times[name] == 1 else f"{name} #{place}" for place, name in enumerate(names)]
