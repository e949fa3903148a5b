"""Whether a run may begin in a folder, or go on there: what is in it is never lost, nor mixed with another run's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.nn import Schedule
from leanconv.runs import RunFolder, save_weights
from leanconv.runs.lock import writing
from leanconv.runs.weights import holds_weights, stored_weights
from leanconv.train.data.image_reader import listing
from leanconv.train.data.splits import same_name
from leanconv.train.progress import write_history
from leanconv.train.recipe import Recipe
from leanconv.train.setup import check_used, last
from leanconv.train.state import State
from leanconv.train.tasks.task import Task

# Settings that a resumed run must keep. The rest may change: more epochs, other workers.
SAME = (
    "task",
    "model",
    "swap",
    "where",
    "init",
    "fit_images",
    "teacher_weight",
    "temperature",
    "feature_weight",
    "blockwise_steps",
    "data",
    "size",
    "batch",
    "seed",
    "optimizer",
    "loss",
    "smoothing",
    "quiet_gates",
    "keep",
    "augment",
    "zoom",
    "flips",
    "light",
    "defect_crop",
)


@contextmanager
def claimed(recipe: Recipe, resume: bool, *, main: bool) -> Iterator[RunFolder]:
    """The run folder of a new run, or of the one to go on with, held until this closes.

    If several processes train together, the `main` one alone holds it and writes there. Nothing is written yet.
    Raises: BadInput where another run has it, a new run would overwrite something or has useless settings; where there
        is none to resume, or it was started otherwise.
    """
    folder = RunFolder(recipe.out)
    if not resume:
        check_used(recipe)
    if not main:
        check_folder(folder, recipe, resume)
        yield folder
        return
    with writing(folder.path, "leanconv train"):
        check_folder(folder, recipe, resume)
        yield folder


def check_folder(folder: RunFolder, recipe: Recipe, resume: bool) -> None:
    """Raise BadInput where the recipe's run may not begin in the folder, or go on there. Nothing is written."""
    if not resume:
        if any(path.exists() for path in (folder.recipe, folder.model_json, folder.weights, folder.last)):
            raise BadInput(
                f"{recipe.out} already holds a run: add --resume to go on with it, or say out=another/folder"
            )
        if there := [path.name for path in folder.files if path.exists()]:
            raise BadInput(f"{recipe.out} holds {listing(there)}, and a run would overwrite it: say out=another/folder")
        return
    if not folder.recipe.is_file():
        raise BadInput(f"{recipe.out} holds no run to resume: start one without --resume")
    before = Recipe.read(folder.recipe)
    changed = [f"{key}={getattr(before, key)}" for key in SAME if getattr(before, key) != getattr(recipe, key)]
    if changed:
        raise BadInput(f"{recipe.out} was started with {' '.join(changed)}: resume it with the same, or choose out=")
    if not last(folder).is_file() and (there := [path.name for path in folder.results if path.exists()]):
        raise BadInput(
            f"{recipe.out} has {listing(there)} but no checkpoint ({last(folder).relative_to(folder.path)}), and would "
            f"begin anew over it: train its weights on with model={recipe.out} out=another/folder"
        )


def check_resumed(
    state: State, recipe: Recipe, folder: RunFolder, net: nn.Module, samples: Any, task: Task, total: int,
    per_epoch: int, teacher: str = "",
) -> None:  # fmt: skip
    """Check that the checkpoint fits the run.

    Raises: BadInput where its training images, classes, teacher or steps are not those of the run. BadCheckpoint where
        its numbers contradict the run, or the best weights of an earlier step are gone.

    Args:
        net: the run's network.
        samples: the training split.
        total, per_epoch: steps that are asked for, and those of an epoch.
        teacher: `digest` of the teacher that is said now; "" without one.
    """
    _check_teacher(state, teacher, recipe)
    path, images = folder.path, len(samples)
    if state.images not in (0, images):
        raise BadInput(
            f"{path} was started with {state.images} training images, {recipe.data} now has {images}: "
            f"resume it with the same, or train its weights on with model={path} out=another/folder"
        )
    before, now = folder.read_model().classes, tuple(samples.classes)
    if before and tuple(map(same_name, before)) != tuple(
        map(same_name, now)
    ):  # files would get other labels, model.json other names
        raise BadInput(
            f"{path} was started with the classes {listing(before)}, {recipe.data} now has "
            f"{listing(now)}: resume it with the same, or choose out="
        )
    if state.step > total:
        raise BadInput(
            f"{path} has done {state.step} steps ({state.step / per_epoch:g} epochs), more than the "
            f"{total} asked for: ask for as many or more, or say out=another/folder"
        )
    _check_numbers(state, recipe, folder, task, per_epoch)
    if recipe.keep == "best" and state.best_step not in (0, state.step):  # else the checkpoint has them
        stored_weights(net, folder.weights)


def _check_teacher(state: State, teacher: str, recipe: Recipe) -> None:
    """Raise BadInput where the run did not begin with this teacher: `teacher` is its `digest`, or ""."""
    if state.teacher != teacher:
        now = f"the weights of teacher={recipe.teacher} are" if teacher else "no teacher is said, that is"
        raise BadInput(
            f"{recipe.out}: {now} not what it was started with: resume it with the same teacher, or train its weights "
            f"on with model={recipe.out} out=another/folder"
        )


def processes_note(before: int, now: int) -> str:
    """What to say where another number of processes goes on than was there before (0: not known)."""
    if before in (0, now):
        return ""
    return (
        f"note   started with {before} processes, goes on with {now}: each draws its dropout, and takes its BatchNorm "
        "statistics, of another share of the batch than before"
    )


def _check_numbers(state: State, recipe: Recipe, folder: RunFolder, task: Task, per_epoch: int) -> None:
    try:
        state.check(task.columns, task.goal, per_epoch=per_epoch, keep=recipe.keep)
        if state.schedule and (state.schedule.get("steps"), state.schedule.get("seed")) != (state.step, recipe.seed):
            raise BadInput(f"schedule={str(state.schedule)[:80]}: {state.step} steps are done with seed {recipe.seed}")
    except BadInput as error:
        raise BadCheckpoint(f"{last(folder)}: is no checkpoint of this run: {error}") from error


def load_schedule(schedule: Schedule, state: State, folder: RunFolder) -> None:
    """Set the schedule to where the run stands. Raises BadCheckpoint for a state that is none of its."""
    if not state.schedule:
        return
    try:
        schedule.load_state_dict(state.schedule)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{last(folder)}: is no checkpoint of this run: schedule: {error}") from error


def keep_best(folder: RunFolder, net: nn.Module) -> None:
    """Write the network's weights as the best ones; scores of others go first, so that nobody takes them for theirs."""
    folder.metrics.unlink(missing_ok=True)
    save_weights(net, folder.weights)


def restore_files(folder: RunFolder, net: nn.Module, state: State) -> None:
    """What a run writes after its checkpoint, of one that was killed in between."""
    if not state.history:
        return
    if state.best_step == state.step and not holds_weights(net, folder.weights):
        keep_best(folder, net)
    write_history(folder.history, state.history)
