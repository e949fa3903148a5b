"""`leanconv search MODEL --data DIR --faster 2x`: which operator in which layer, by measurement."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leanconv.cli.common import (
    Device,
    Dtype,
    Json,
    ModelWords,
    Overwrite,
    Threads,
    check_out,
    example,
    reference,
    report,
    set_threads,
    shape,
    torch_device,
)
from leanconv.cli.plan import TrustCode, Where
from leanconv.errors import BadInput
from leanconv.files import check_own

if TYPE_CHECKING:
    pass


class Init(StrEnum):
    """The source of the weights whose harm is measured. A test compares them with those of `apply_`."""

    auto = "auto"
    fit = "fit"
    project = "project"
    fresh = "fresh"


PICTURES = (".html", ".png", ".svg")


def command(
    model: ModelWords,
    data: Annotated[
        str, typer.Option("--data", metavar="DATA", help="Images to measure the harm on; labels are not needed.")
    ],
    faster: Annotated[
        str | None, typer.Option("--faster", metavar="2x", help="The budget: so many times the dense network's speed.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="50%|12ms", help="The same as a share or absolute.")
    ] = None,
    macs: Annotated[str | None, typer.Option("--macs", metavar="50%|40M", help="The most MACs.")] = None,
    params: Annotated[str | None, typer.Option("--params", metavar="50%|1M", help="The most parameters.")] = None,
    bytes: Annotated[
        str | None, typer.Option("--bytes", metavar="50%|20M", help="The most bytes that the convolutions transfer.")
    ] = None,
    cycles: Annotated[
        str | None, typer.Option("--cycles", metavar="50%|2M", help="The most cycles on a systolic array.")
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="OP", help="A candidate operator (repeatable); default: eight for CPUs."),
    ] = None,
    where: Where = None,
    init: Annotated[
        Init, typer.Option("--init", help="How the weights of trials are made; auto is fit; project is far quicker.")
    ] = Init.auto,
    images: Annotated[
        int,
        typer.Option(
            "--images", min=1, help="The most that a trial is fitted on; as many others judge it, if there are."
        ),
    ] = 128,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "train",
    input: Annotated[
        str | None,
        typer.Option("--input", metavar="N,C,H,W", help="Shape to measure latency on; default: one of the images."),
    ] = None,
    threads: Threads = None,
    device: Device = "cpu",
    array: Annotated[
        str, typer.Option("--array", metavar="ROWSxCOLUMNS", help="With --cycles: the size of the array.")
    ] = "64x64",
    shortlist: Annotated[int, typer.Option("--shortlist", min=1, help="Plans that are measured as a whole.")] = 3,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FILE",
            help="A new file or a search's, for measurements (default: in the cache folder).",
        ),
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option("--pareto", metavar="FRONT.html", help="Draw cost against harm (.html, .png, .svg)."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="PLAN.json", help="Save the plan to this file.")] = None,
    overwrite: Overwrite = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Find the operators that meet a budget at the least harm, layer by layer. `convert --plan` applies the plan.

    Latency is measured inside the network, the harm on its outputs, and whole plans are measured again. A search that
    was killed goes on when it is called again.

    How long: one trial for each layer and candidate that saves something. With --init fit a trial of a ResNet-20 on 128
    images of 32×32 takes some 4 s of one core, so a search takes minutes; larger networks and images take longer.
    Fewer --images and --to shorten it.
    """
    given = {"faster": faster, "latency": latency, "macs": macs, "params": params, "bytes": bytes, "cycles": cycles}
    budget = {name: value for name, value in given.items() if value is not None}
    if not budget:
        raise BadInput("search needs a budget: --faster 2x, --latency 12ms, --macs 50%, --params, --bytes or --cycles")
    if faster is not None and latency is not None:
        raise BadInput("--faster and --latency limit the same: give one of them")
    check_out(out, overwrite)
    if pareto is not None:
        if pareto.suffix.lower() not in PICTURES:
            raise BadInput(f"--pareto {pareto}: the name must end in one of {', '.join(PICTURES)}")
        check_own(pareto, overwrite)
    if input is not None:
        shape(input)
    set_threads(threads)
    from leanconv.planner import search
    from leanconv.planner.budget import Budget
    from leanconv.planner.checks import check_state
    from leanconv.planner.pictures import picture_batches, run_of
    from leanconv.runs import load

    Budget.of(budget)  # before the data is read
    check_state(state)
    named = reference(model)
    network = load(named, trust_code=trust_code).to(torch_device(device)).eval()
    run = run_of(named)
    size = shape(input)[-1] if input is not None else 224
    most = 2 * images if init in (Init.auto, Init.fit) else images
    batches = picture_batches(data, network, run=run, split=split, size=size, most=most)
    x = batches[0][:1] if input is None else example(input, Dtype.float32, device)
    found = search(
        network,
        x,
        data=batches,
        budget=budget,
        candidates=to or None,
        where=where,
        init=None if init is Init.auto else init.value,
        images=images,
        shortlist=shortlist,
        array=array,
        state=state,
    )
    report(found, json=json)
    if out is not None:
        check_out(out, overwrite, found.to_dict())
        found.save(out)
    if pareto is not None:
        from leanconv.report.front import draw_front

        draw_front(found.search, pareto, title=named, overwrite=overwrite)
