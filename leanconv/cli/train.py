"""`leanconv train RECIPE [key=value ...]`: train, validate, write a run folder. `--resume` continues one."""

import json as _json
import os
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.common import Json
from leanconv.recipes import names


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A built-in name (see leanconv recipes), a TOML file, or a run folder to resume."
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value]...", help="Override the recipe's settings: data=DIR out=runs/mine epochs=5 ..."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in out=.")] = False,
    also_dense: Annotated[
        bool,
        typer.Option(
            "--also-dense", help="Then train the same network with standard convolutions into OUT-dense, to compare."
        ),
    ] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the Python file that a recipe names as its model.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress on standard error.")] = False,
    json: Json = False,
) -> None:
    """Train a segmentation or classification model from a recipe, and write a run folder.

    The recipe is a built-in one (leanconv train wafer data=DIR) or your own file.
    Data: a folder with images/ and masks/, a folder per class, Parquet splits, synthetic:wafer, or
    torchvision:CIFAR10 (CIFAR100, SVHN, ImageFolder; ?root=DIR&download=true). Ctrl-C saves the run and prints how to
    continue: leanconv train RUN --resume. A longer run first tries which mode runs its step fastest with the same
    gradients (eager, torch.compile, our kernels; bfloat16 with amp=auto), and keeps it; mode=eager tries nothing. For
    several processes: accelerate launch -m leanconv train ...

    To swap a trained run and win its accuracy back: leanconv train recover teacher=RUN "swap=hetconv(part=4)". The
    network starts from RUN's weights and learns from RUN's outputs beside the labels.
    """
    from leanconv.train.recipe import Recipe

    given = list(words or ())
    settings = Recipe.read(*_where(recipe, given, resume))  # before PyTorch is imported: a typo is answered at once
    from leanconv.train.inference.score import read_metrics, summary

    typed = trust_code or any(word.startswith("model=") for word in given)
    if also_dense:
        from leanconv.train.twin import fit_both

        folder, dense = fit_both(settings, resume=resume, progress=not quiet, trust_code=typed)
    else:
        from leanconv.train.loop import fit

        folder, dense = fit(settings, resume=resume, progress=not quiet, trust_code=typed), None
    if not _is_main():
        return
    if json:
        numbers = {"run": str(folder.path), **read_metrics(folder)}
        twin = {"dense": {"run": str(dense.path), **read_metrics(dense)}} if dense else {}
        print(_json.dumps(numbers | twin, indent=2))
    else:
        print(summary(folder, dense))


def _where(recipe: Path, words: list[str], resume: bool) -> tuple[Path, list[str]]:
    """Return the recipe's file and the words. For a resumed run, `out` is its folder's current path."""
    # Unlike Path.is_dir, it returns False for a name that is too long. A folder "wafer" of images hides no recipe.
    if os.path.isdir(recipe) and (str(recipe) not in names() or (recipe / "recipe.toml").is_file()):
        recipe = recipe / "recipe.toml"
    moved = resume and (recipe.parent / "model.json").is_file() and not any(word.startswith("out=") for word in words)
    return recipe, [f"out={recipe.parent}", *words] if moved else words


def _is_main() -> bool:
    """Whether this process reports: only one of several does."""
    return os.environ.get("RANK", "0") == "0"
