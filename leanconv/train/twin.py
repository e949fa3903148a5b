"""The dense twin of a lean run: the same recipe with standard convolutions, for a report to compare with."""

import os
import shlex
from dataclasses import replace
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.registry import parse
from leanconv.runs import RunFolder
from leanconv.runs.kinds import join, read, without
from leanconv.train.inference.score import read_metrics
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.resume import check_folder


def dense_twin(recipe: Recipe) -> Recipe:
    """The same recipe without `swap=` and without the model's `conv=`; its run folder is `OUT-dense`.

    Raises: BadInput where the recipe has neither, for the twin would be the same network, or has a teacher, which is
        that network already.
    """
    if recipe.teacher:
        raise BadInput(
            f"--also-dense: the teacher is what this run compares with: leave the option out, and say "
            f"leanconv report {shlex.quote(recipe.teacher)} {shlex.quote(recipe.out)}"
        )
    reference = read(recipe.model)
    conv = str(reference.options.get("conv", "conv")) if reference.kind == "leanconv" else "conv"
    lean = parse(conv)[0] != "conv"
    if not (lean or recipe.swap):
        example = f"model={join(recipe.model, ['conv=depthwise_separable'])}" if reference.kind == "leanconv" else ""
        raise BadInput(
            f"--also-dense: {recipe.model} has standard convolutions already; make the run lean with "
            f"{f'{shlex.quote(example)} or ' if example else ''}swap=depthwise_separable"
        )
    path = Path(recipe.out)
    if path.name in ("", ".."):
        path = path.resolve()
    model = without(recipe.model, "conv") if lean else recipe.model
    return replace(recipe, model=model, swap="", where="", out=f"{path}-dense")


def fit_both(
    recipe: Recipe, *, resume: bool = False, progress: bool = True, trust_code: bool = False
) -> tuple[RunFolder, RunFolder]:
    """Train the recipe, then its dense twin. Both folders are looked at before the first step.

    Args:
        resume: go on with both, wherever they stopped; a finished one is left alone.
    Returns: the folder of the recipe, and that of its twin.
    Raises: what `fit` raises.
    """
    dense = dense_twin(recipe)
    begun = resume and os.path.isfile(RunFolder(dense.out).recipe)
    check_folder(RunFolder(recipe.out), recipe, resume)
    check_folder(RunFolder(dense.out), dense, begun)
    again = f"leanconv train {shlex.quote(recipe.out)} --resume --also-dense"
    notes: set[str] = set()

    def trained(each: Recipe, resumed: bool) -> RunFolder:
        if resumed and _is_finished(each):
            return RunFolder(each.out)
        return fit(each, resume=resumed, progress=progress, trust_code=trust_code, again=again, notes=notes)

    return trained(recipe, resume), trained(dense, begun)


def _is_finished(recipe: Recipe) -> bool:
    """Whether the folder holds the final scores of exactly this recipe: better weights would have deleted them."""
    folder = RunFolder(recipe.out)
    return Recipe.read(folder.recipe) == recipe and "steps" in read_metrics(folder)
