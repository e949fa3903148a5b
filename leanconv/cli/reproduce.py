"""`leanconv reproduce PAPER/TABLE`: compare the papers' figures with ours."""

from typing import Annotated

import typer

from leanconv.cli import common
from leanconv.errors import BadInput


def command(
    context: typer.Context,
    table: Annotated[str, typer.Argument(metavar="PAPER/TABLE", help="hetconv/table1, hetconv, or all.")],
    counts: Annotated[bool, typer.Option("--counts", help="Compare params, Flops, MAdd (the default).")] = False,
    time: Annotated[
        bool,
        typer.Option("--time", help="Time frames per second of our networks and the paper's, at the table's size."),
    ] = False,
    input: Annotated[
        str | None, typer.Option("--input", metavar="N,C,H,W", help="Replaces the table's input shape.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", min=0, help="Seconds of timing per table, at least 3 rounds.")
    ] = 15,
    clock: Annotated[
        str, typer.Option("--clock", help="wall, or cpu: one thread's processor time, for a busy machine.")
    ] = "wall",
    threads: common.Threads = None,
    device: common.Device = "cpu",
    out: common.Out = None,
    overwrite: common.Overwrite = False,
    json: common.Json = False,
) -> None:
    """Build a paper's networks, count them by the paper's convention, and print paper, ours and error per figure.

    A figure is ok if it is within 0.5 %, or if it rounds to the printed one. Several tables end with a summary of all
    differences and their reasons. The exit status is 1 if a figure that should agree does not.
    """
    from leanconv.papers import reproduce

    common.check_out(out, overwrite)
    if not time:
        common.refuse(context, "applies to --time only", "budget", "clock")
    batch, size = _size(input)
    common.set_threads(threads)
    with common.bar() as progress:
        found = reproduce(
            table,
            counts=counts or not time,
            time=time,
            size=size,
            batch=batch,
            device=common.torch_device(device),
            budget_s=budget,
            clock=clock,
            progress=progress,
        )
    common.report(found, json=json, out=out, overwrite=overwrite)
    if found.unexpected:
        raise typer.Exit(1)


def _size(text: str | None) -> tuple[int, tuple[int, int] | None]:
    if text is None:
        return 1, None
    sizes = common.shape(text)
    if len(sizes) != 4 or sizes[1] != 3:
        raise BadInput(f"--input {text!r}: the tables' networks take N,3,H,W")
    return sizes[0], (sizes[2], sizes[3])
