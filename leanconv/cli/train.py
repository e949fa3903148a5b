"""`leanconv train RECIPE.toml [key=value ...]`: train, validate, write a run folder; `--resume` goes on with one."""

import json as _json
import os
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.common import Json


def command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="A recipe, or a run folder to resume.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=value]...", help="Settings over the recipe's: data=DIR out=runs/mine epochs=5 ..."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in out=.")] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the Python file that a recipe names as its model.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
    json: Json = False,
) -> None:
    """Train a segmentation or classification model as a recipe says, into a run folder.

    Data: a folder with images/ and masks/, one with a folder a class, Parquet splits, synthetic:wafer, or
    torchvision:CIFAR10 (CIFAR100, SVHN, ImageFolder; ?root=DIR&download=true). Ctrl-C saves and says how to
    go on: leanconv train RUN --resume. On several processes: accelerate launch -m leanconv train ...
    """
    from leanconv.train.inference.score import read_metrics, summary
    from leanconv.train.loop import fit
    from leanconv.train.recipe import Recipe

    given = list(words or ())
    settings = Recipe.read(*_where(recipe, given, resume))
    typed = trust_code or any(word.startswith("model=") for word in given)
    folder = fit(settings, resume=resume, progress=not quiet, trust_code=typed)
    if _is_main():
        print(_json.dumps({"run": str(folder.path), **read_metrics(folder)}, indent=2) if json else summary(folder))


def _where(recipe: Path, words: list[str], resume: bool) -> tuple[Path, list[str]]:
    """The recipe's file, and the words with the run folder's own path, wherever it lies now, as `out`."""
    if os.path.isdir(recipe):  # unlike Path.is_dir, False rather than an error for a name of any length
        recipe = recipe / "recipe.toml"
    moved = resume and (recipe.parent / "model.json").is_file() and not any(word.startswith("out=") for word in words)
    return recipe, [f"out={recipe.parent}", *words] if moved else words


def _is_main() -> bool:
    """Several processes train, one reports."""
    return os.environ.get("RANK", "0") == "0"
