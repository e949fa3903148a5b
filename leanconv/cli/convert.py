"""`leanconv convert MODEL --out RUN`: swap convolutions, project their weights, and write a run folder."""

import json as _json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.common import Input, Json, ModelWords, example, reference, refuse, shape_of
from leanconv.cli.plan import TrustCode, Where
from leanconv.errors import BadInput
from leanconv.text import one_line

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.convert import Plan
    from leanconv.runs import RunFolder
    from leanconv.train.tasks.calibration import Pictures


class Init(StrEnum):
    """The source of the new weights."""

    project = "project"
    fresh = "fresh"
    fit = "fit"


def command(
    context: typer.Context,
    model: ModelWords,
    out: Annotated[
        Path, typer.Option("--out", metavar="RUN", help="The run folder to write. It must not contain a model.")
    ],
    to: Annotated[
        str | None, typer.Option("--to", metavar="OP", help="The operator, for example 'hetconv(part=4)'.")
    ] = None,
    where: Where = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="PLAN.json", help="A saved plan that replaces --to and --where.")
    ] = None,
    init: Annotated[
        Init,
        typer.Option("--init", help="project: from the old weights if possible; fit: also from images."),
    ] = Init.project,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="DIR", help="Images to fit on: a data reference, or a folder of images alone."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of the data to fit on: train, val or test.")] = "train",
    images: Annotated[int, typer.Option("--images", min=1, help="With --data: the most images to fit on.")] = 500,
    input: Input = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Swap convolutions and write the model as a run folder. Every other command takes the folder as MODEL."""
    from leanconv.convert import Plan, apply_
    from leanconv.convert import plan as make_plan
    from leanconv.runs import RunFolder, load
    from leanconv.runs.lock import writing

    if (plan is None) == (to is None) or (plan is not None and where is not None):
        raise BadInput("choose what to swap: either --to OP (with --where GLOB if you like) or --plan PLAN.json")
    if init is Init.fit and data is None:
        raise BadInput("--init fit needs --data DIR: some hundred images of the kind that the model was trained on")
    if init is not Init.fit:
        refuse(context, "needs --init fit", "data", "split", "images")
    run, named = RunFolder(out), reference(model)
    with writing(out, "leanconv convert"):
        if run.model_json.exists() or run.weights.exists():
            raise BadInput(f"{out}: holds a model already; give --out a new folder")
        if there := next((path.name for path in run.files if path.exists()), None):
            raise BadInput(f"{out}: holds {there}, as a run does; give --out a new folder")
        network, x = load(named, trust_code=trust_code), example(shape_of(input, [named]))
        steps = Plan.load(plan) if plan is not None else make_plan(network, x, to=str(to), where=where)
        given = x if data is None else _pictures(data, x, images, split)
        applied = apply_(network, steps, init=init.value, data=given)
        _write(run, named, network, steps)
    if json:
        print(_json.dumps({"run": str(out), **applied.to_dict(), "plan": steps.to_dict()}, indent=2))
    else:
        message = one_line(f"{out}: written; it is a MODEL for every command, and load({str(out)!r}) in Python")
        print(f"{applied}\n\n{message}")


def _pictures(data: str, x: "Tensor", count: int, split: str) -> "Pictures":
    """The images of --data at the size of --input. Raises BadInput for another shape than N,3,S,S, or no such split."""
    from leanconv.train.data.splits import NoSplit
    from leanconv.train.tasks.calibration import pictures

    if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] != x.shape[3]:
        raise BadInput(f"--data gives colour images as squares, and --input is {tuple(x.shape)}; say --input 1,3,S,S")
    try:
        return pictures(data, x.shape[2], count, split=split)
    except NoSplit as error:
        raise BadInput(f"{error}; --split says which one to fit on") from error


def _write(run: "RunFolder", named: str, network: object, steps: "Plan") -> None:
    """Write weights, then model.json: a folder without it is no run. A run folder's own swaps stay."""
    from leanconv.runs import RunFolder

    swaps = {swap.name: str(swap.to) for swap in steps.swapped}
    if Path(named).is_dir():
        stored = RunFolder.open(named).read_model()
        named, swaps = stored.reference.text, {**dict(stored.swaps), **swaps}
    run.save_model(network)  # type: ignore[arg-type]
    run.write_model(named, swaps=swaps.items())
