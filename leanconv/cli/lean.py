"""`leanconv lean RUN_OR_MODEL --faster 2x`: search, fit, recover, check and export, in one resumable command."""

import json as _json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.common import Json, ModelWords, Threads, reference, refuse, shape
from leanconv.errors import BadInput

if TYPE_CHECKING:
    from leanconv.planner.lean.asked import Asked

_ALL = (
    "data", "faster", "to", "where", "candidates", "epochs", "lr", "images", "size", "input", "threads", "budget",
    "max_loss", "export", "out",
)  # fmt: skip


def command(
    context: typer.Context,
    model: ModelWords,
    data: Annotated[
        str,
        typer.Option("--data", help="Labelled data, or a folder of images alone (default: the run's training data)."),
    ] = "",
    faster: Annotated[
        str, typer.Option("--faster", metavar="2x", help="How many times as fast, both on their best engine.")
    ] = "",
    to: Annotated[
        str, typer.Option("--to", metavar="OP", help="No search: this operator in every layer that it may replace.")
    ] = "",
    where: Annotated[str, typer.Option("--where", metavar="GLOB", help="Only layers with these names.")] = "",
    candidates: Annotated[
        list[str] | None,
        typer.Option("--candidates", metavar="OP", help="An operator that the search may take (repeatable)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder to write (default: RUN-lean).")
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=0, help="Of the recovery; 0 trains nothing.")] = 1,
    lr: Annotated[
        float, typer.Option("--lr", min=0, help="Of the recovery.", show_default="that of the recipe recover")
    ] = 0.0,
    max_loss: Annotated[
        float | None, typer.Option("--max-loss", help="Refuse a larger loss of the score; .01 is one point.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Also write .onnx, .xml or .pt2, verified.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=1, help="Images that search and fit see.")] = 512,
    size: Annotated[
        int,
        typer.Option("--size", min=0, help="Side of the images, in pixels.", show_default="the run's; a model's: 224"),
    ] = 0,
    input: Annotated[
        str, typer.Option("--input", metavar="N,C,H,W", help="Shape of the timed input (default: one image).")
    ] = "",
    budget: Annotated[float, typer.Option("--budget", help="Seconds for the engines of each network.")] = 60.0,
    threads: Threads = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in the folder that is given as MODEL.")] = False,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the Python file that a run folder names.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress on standard error.")] = False,
    json: Json = False,
) -> None:
    """Make a trained network lean: find a plan by measurement, fit, recover, check, export. RUN stays as it is.

    leanconv lean runs/dense --faster 2x. The dense network is the teacher: its run folder, or any MODEL. The report
    says what was lost (top-1 or Dice) and what was won (time, parameters, MACs, bytes). The lean network is DIR, a run
    folder. A network that is not faster, or loses more than --max-loss, is not handed over: exit status 1, and DIR
    keeps the figures.

    Every stage is kept. After Ctrl-C or a crash the same command goes on, or leanconv lean DIR --resume.
    """
    from leanconv.planner.lean.asked import Asked, factor

    named = reference(model)
    if resume:
        refuse(context, "is known to a folder that goes on", *_ALL)
        from leanconv.planner.lean.state import State

        asked = replace(State.read(named).asked, out=named)
    else:
        asked = Asked(
            model=named,
            out=str(out or _beside(named)),
            data=data,
            faster=factor(faster) if faster else 0.0,
            to=to,
            where=where,
            candidates=tuple(candidates or ()),
            epochs=epochs,
            lr=lr,
            images=images,
            size=size,
            input=shape(input) if input else (),
            threads=threads or 0,
            budget_s=budget,
            max_loss=max_loss,
            export=str(export or ""),
        )
    _go(asked, typed=not resume, trust_code=trust_code, progress=not quiet, json=json)


def _go(asked: "Asked", *, typed: bool, trust_code: bool, progress: bool, json: bool) -> None:
    """Go the way and print its report. Code runs where the user typed its file, or trusts it."""
    from leanconv.planner.lean.whole import make_lean
    from leanconv.runs.kinds import read

    trusted = trust_code or (typed and read(asked.model).kind == "code")
    report = make_lean(asked, trust_code=trusted, progress=progress)
    print(_json.dumps(report.to_dict(), indent=2) if json else report)
    if report.refusal:
        raise BadInput(report.refusal)


def _beside(model: str) -> str:
    """`runs/dense` -> `runs/dense-lean`; of another model runs/lean."""
    path = Path(model)
    return f"{path.resolve() if path.name in ('', '..') else path}-lean" if path.is_dir() else "runs/lean"
