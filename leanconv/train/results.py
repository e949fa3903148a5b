"""metrics.json: what a finished run says of itself."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from leanconv.files import write_json
from leanconv.runs import RunFolder
from leanconv.train.distillation.teacher import teacher_scores
from leanconv.train.recipe import Recipe
from leanconv.train.state import State
from leanconv.train.tasks.task import Task


def write_metrics(
    folder: RunFolder, recipe: Recipe, task: Task, state: State, net: nn.Module, chosen: Mapping[str, Any],
    scores: Mapping[Any, Any],
) -> None:  # fmt: skip
    """Write the scores of the best weights, with those of the teacher, and how the run went.

    Args:
        chosen: what the task decided on validation images, such as the threshold.
        scores: by split.
    """
    facts = {"steps": state.step, "best_epoch": state.best_epoch, "seconds": round(state.seconds, 3)}
    size = {"params": sum(p.numel() for p in net.parameters())}
    kind = {"task": task.name, "keep": recipe.keep, "mode": state.mode}
    taught = teacher_scores(recipe, task.goal)
    write_json(folder.metrics, {**kind, **chosen, **scores, **taught, **facts, **size})
