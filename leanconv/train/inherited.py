"""The settings that a recipe with a teacher leaves out: those of the teacher's run. Needs no PyTorch."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput
from leanconv.files import check_run, read_toml

# What the model and its images mean. How it is trained is the recipe's own.
KEYS = (
    "model", "data", "task", "classes", "size", "loss", "smoothing", "keep", "augment", "flips", "light", "zoom",
    "defect_crop", "min_area", "merge", "max_defects", "max_area", "fail_classes",
)  # fmt: skip


def inherited(teacher: str, said: Collection[str]) -> dict[str, Any]:
    """The teacher's settings for those of KEYS that are not `said`; the model is the teacher with its weights.

    Raises: BadInput where the teacher is no run folder and no model reference, or its recipe.toml cannot be read.
    """
    left = [key for key in KEYS if key not in said]
    if not left:
        return {}
    found: dict[str, Any] = {}
    if not os.path.isdir(teacher) and ":" in teacher:  # a model reference: it has no other settings
        return {"model": teacher} if "model" in left else {}
    try:
        check_run(teacher)
        if (file := Path(teacher) / "recipe.toml").is_file():
            found = {key: value for key, value in read_toml(file).items() if key in left}
    except BadInput as error:
        raise BadInput(f"recipe: teacher={teacher[:200]}: {str(error).removeprefix(f'{teacher}: ')}") from error
    return found | ({"model": teacher} if "model" in left else {})
