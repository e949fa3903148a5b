"""`leanconv reproduce PAPER/TABLE`: the papers' figures beside ours."""

from typing import Annotated

import typer

from leanconv.cli import common
from leanconv.errors import BadInput


def command(
    context: typer.Context,
    table: Annotated[str, typer.Argument(metavar="PAPER/TABLE", help="hetconv/table1, hetconv, or all.")],
    counts: Annotated[bool, typer.Option("--counts", help="Params, Flops, MAdd (the default).")] = False,
    time: Annotated[
        bool, typer.Option("--time", help="Frames per second, of our networks and the paper's, at the table's size.")
    ] = False,
    input: Annotated[
        str | None, typer.Option("--input", metavar="N,C,H,W", help="Another input than the table's.")
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", min=0, help="Seconds of timing per table, at least 3 rounds.")
    ] = 15,
    clock: Annotated[
        str, typer.Option("--clock", help="wall, or cpu: one thread's own computing time, for a crowded machine.")
    ] = "wall",
    threads: common.Threads = None,
    device: common.Device = "cpu",
    out: common.Out = None,
    overwrite: common.Overwrite = False,
    json: common.Json = False,
) -> None:
    """Build a paper's networks, count them under the paper's convention, and print paper / ours / error per figure.

    A figure is ok within 0.5 %, or when ours prints as the paper printed it. Of several tables a summary stands last:
    what does not agree, and why. Exit 1 where a figure that should agree does not.
    """
    from leanconv.papers import reproduce

    common.check_out(out, overwrite)
    if not time:
        common.refuse(context, "is of --time", "budget", "clock")
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
