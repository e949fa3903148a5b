"""The recipe's teacher: found, checked before the first step, and its scores beside the student's."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from leanconv.errors import BadInput, LeanconvError, UntrustedCode
from leanconv.files import read_json
from leanconv.runs import RunFolder
from leanconv.runs.kinds import build, read
from leanconv.train.data.image_reader import listing
from leanconv.train.data.splits import same_name
from leanconv.train.distillation.distill import check_finite
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.task import Task


def check_teacher(recipe: Recipe) -> None:
    """Raise BadInput for a teacher that is the run itself or its unchanged start, before anything is read or built."""
    if not recipe.teacher:
        return
    if _same_folder(recipe.teacher, recipe.out):
        raise BadInput(f"recipe: teacher={recipe.teacher} is the run's own folder: say out=another/folder")
    same = recipe.model == recipe.teacher or _same_folder(recipe.teacher, recipe.model)
    if same and not recipe.swap:
        raise BadInput(
            f"recipe: teacher={recipe.teacher} is the student itself, unchanged: say swap=OPERATOR (like "
            "swap=depthwise_separable), or model= another network"
        )


def teacher_folder(recipe: Recipe) -> RunFolder | None:
    """The run folder of the recipe's teacher, which knows the range of 16-bit images; None where it is none."""
    return RunFolder(recipe.teacher) if recipe.teacher and os.path.isdir(recipe.teacher) else None


def load_teacher(
    recipe: Recipe, task: Task, *, trust_code: bool = False, note: Callable[[str], object] = str
) -> nn.Module | None:
    """The recipe's teacher in eval mode, checked against the run's task, classes and image size; None if it has none.

    Args:
        note: gets a line on a run that still trains.
    Raises: BadInput for a folder without weights, another task, other classes or another size, fresh or not finite
        weights; BadCheckpoint for a damaged run; UntrustedCode for somebody's Python.
    """
    if not recipe.teacher:
        return None
    reference = read(recipe.teacher)
    if reference.kind == "path":
        folder = RunFolder.open(recipe.teacher)
        _check_run(folder, recipe, task)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            teacher = folder.load_model(trust_code=trust_code)
        for each in caught:
            note(f"note   teacher: {each.message}")
    else:
        if reference.kind == "code" and not trust_code:
            raise UntrustedCode(
                f"the recipe asks to run {reference.name}:{reference.factory} as its teacher; read that file, and say "
                "--trust-code (or trust_code=True) if you trust it"
            )
        if reference.kind != "code" and reference.options.get("pretrained") is not True:
            raise BadInput(
                f"recipe: teacher={recipe.teacher} has fresh weights and knows nothing: give a run folder, or a timm "
                "or smp model with ?pretrained=true"
            )
        teacher = build(reference, trust_code=trust_code)
    try:
        task.check(teacher, torch.zeros(1, 3, recipe.size, recipe.size))
    except LeanconvError as error:
        raise BadInput(f"recipe: teacher={recipe.teacher}: {error}") from error
    try:
        check_finite(teacher)
    except BadInput as error:
        raise BadInput(f"recipe: teacher={recipe.teacher}: {error}") from error
    return teacher.eval().requires_grad_(False)


def teacher_scores(recipe: Recipe, goal: str) -> dict[str, Any]:
    """The teacher's own score on each split, as its metrics.json has it for the same data; {} where it has none."""
    if not recipe.teacher:
        return {}
    found: dict[str, Any] = {"teacher": {"run": recipe.teacher}}
    folder = RunFolder(recipe.teacher)
    if not (folder.recipe.is_file() and folder.metrics.is_file()):
        return found
    try:
        scores = read_json(folder.metrics)
        if Recipe.read(folder.recipe).data != recipe.data or not isinstance(scores, dict):
            return found
    except LeanconvError:
        return found
    splits = {split: scores[split] for split in ("val", "test") if isinstance(scores.get(split), dict)}
    found["teacher"] |= {split: {goal: each[goal]} for split, each in splits.items() if goal in each}
    return found


def _check_run(folder: RunFolder, recipe: Recipe, task: Task) -> None:
    where, stored = f"recipe: teacher={folder.path}", folder.read_model()
    if not folder.weights.is_file():
        raise BadInput(f"{where}: it has no weights yet ({folder.weights.name}): let its training finish an epoch")
    if stored.task and stored.task != task.name:
        raise BadInput(f"{where}: its task is {stored.task}, this run's is {task.name}: take a teacher of this task")
    theirs, ours = ([same_name(name) for name in names] for names in (stored.classes, task.classes))
    if theirs and theirs != ours:
        raise BadInput(
            f"{where}: its classes are {listing(stored.classes)}, the data's are {listing(task.classes)}: "
            "take a teacher of these classes, or its own data"
        )
    if task.name == "classify" and folder.recipe.is_file() and (size := Recipe.read(folder.recipe).size) != recipe.size:
        raise BadInput(f"{where}: it was trained at size={size}, this recipe has size={recipe.size}: say size={size}")


def _same_folder(one: str, other: str) -> bool:
    return os.path.isdir(one) and os.path.isdir(other) and os.path.samefile(one, other)
