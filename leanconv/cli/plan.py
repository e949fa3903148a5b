"""`leanconv plan MODEL`: show which convolutions a swap would change, and why the others stay."""

from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.common import Input, Json, ModelWords, Overwrite, check_out, example, reference, report, shape_of

To = Annotated[str, typer.Option("--to", metavar="OP", help="The operator, for example 'hetconv(part=4)'; see `ops`.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--where", metavar="GLOB", help="Only layers with these names ('layer3.*'); default: all but the first."
    ),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python file that a run folder's model.json names.")
]


def command(
    model: ModelWords,
    to: To,
    input: Input = None,
    where: Where = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="PLAN.json", help="Save the plan to this file.")] = None,
    overwrite: Overwrite = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Show what a swap would change, layer by layer, and why other convolutions stay. Nothing is changed."""
    check_out(out, overwrite)
    from leanconv.convert import plan
    from leanconv.runs import load

    named = reference(model)
    found = plan(load(named, trust_code=trust_code), example(shape_of(input, [named])), to=to, where=where)
    report(found, json=json)
    if out is not None:
        check_out(out, overwrite, found.to_dict())
        found.save(out)
