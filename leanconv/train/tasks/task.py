"""The task of a recipe, a data reference or a run folder, and its data: the only file that knows both tasks."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.class_folders import has_class_folders
from leanconv.train.data.folders import is_of_masks
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.references import parse
from leanconv.train.data.samples import open_data
from leanconv.train.data.splits import SPLITS, holds_parquet, parquet_files
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.classify import Classification
from leanconv.train.tasks.decision import KEYS, Rule
from leanconv.train.tasks.segment import Segmentation

Task = Segmentation | Classification


def find_task(ref: str) -> str:
    """`segment` or `classify`, by the data of a reference: data with masks is for segmentation."""
    place, _ = parse(ref)
    if place.startswith("torchvision:"):
        return "classify"
    root = Path(os.path.expanduser(place))
    if place.startswith("synthetic:") or not os.path.isdir(root):
        return "segment"  # whose reader says what is wrong with it
    if holds_parquet(root):
        from leanconv.train.data.parquet import column_names

        files = [path for split in SPLITS for path in parquet_files(root, split)]
        names = column_names(files[0]) if files else []
        return "classify" if "label" in names and "mask" not in names else "segment"
    if is_of_masks(root):
        return "segment"
    return "classify" if has_class_folders(root) else "segment"


def task_of(recipe: Recipe) -> str:
    """The recipe's task; `auto` decides by the data."""
    return find_task(recipe.data) if recipe.task == "auto" else recipe.task


def make_task(recipe: Recipe, kind: str, classes: tuple[str, ...], *, ignores: bool = False) -> Task:
    """The task to train; `ignores`: masks exclude pixels. Raises BadInput for settings of the other task."""
    if kind == "classify":
        unused = {"zoom": 1.0, "defect_crop": 0.0, "classes": (), **KEYS}
        for key, default in unused.items():
            if (value := getattr(recipe, key)) != default:
                shown = ",".join(value) if isinstance(value, tuple) else value
                raise BadInput(f"recipe: {key}={shown} is for segmentation, this data has a class an image")
        return Classification(classes, recipe.loss, recipe.smoothing)
    if recipe.smoothing:
        raise BadInput(f"recipe: smoothing={recipe.smoothing} is for classification, this data has masks")
    return Segmentation(classes, recipe.loss, ignores, Rule.of(recipe, classes))


def open_split(
    ref: str, split: str, *, task: str, size: int, bits: int | None = None, classes: Sequence[str] | int | None = None
) -> Any:
    """One split of the task's data: `Samples` with masks, or `Labelled` images (squares of `size`).

    `classes`: of the masks, as in `open_data`.
    """
    if task == "classify":
        return open_labelled(ref, split, size=size, bits=bits)
    return open_data(ref, split, bits=bits, classes=classes)


def open_run_data(folder: RunFolder, ref: str, split: str) -> Any:
    """A split of any data as a run's model takes it: its task, image size, range of 16 bits, numbers of the classes."""
    stored = folder.read_model()
    if stored.task != "classify":
        return open_data(ref, split, bits=stored.bits, classes=stored.classes or None)
    return open_labelled(ref, split, size=run_size(folder), bits=stored.bits).as_classes(stored.classes)


def run_size(folder: RunFolder) -> int:
    """The side of the squares that a run's classifier takes. Raises BadInput if the run does not record it."""
    if not folder.recipe.is_file():
        raise BadInput(f"{folder.path} has no recipe.toml: the size of the images that it was trained on is not known")
    return Recipe.read(folder.recipe).size


def run_task(folder: RunFolder) -> str:
    """The task of a run's model. Raises BadCheckpoint for a damaged model.json."""
    return folder.read_model().task or "segment"
