"""`leanconv profile MODEL`: count and time a model layer by layer, or compute its cycles on an array."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.common import (
    ChannelsLast,
    Device,
    Dtype,
    DtypeOption,
    Input,
    Json,
    ModelWords,
    Out,
    Overwrite,
    Threads,
    check_out,
    example,
    named,
    reference,
    references,
    refuse,
    report,
    set_threads,
    shape_of,
    torch_device,
    torch_dtype,
)
from leanconv.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

Conventions = Annotated[
    list[str] | None,
    typer.Option(
        "--convention",
        metavar="NAME",
        help="Also count by this convention (repeatable): macs_weights, macs_trainable, torchstat, thop, thop_old, "
        "ptflops, ptflops_aten, fuse, od, fvcore, torch, executed_macs.",
    ),
]
Budget = Annotated[float, typer.Option("--budget", metavar="SECONDS", min=0.0, help="Seconds of timing.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python file that a run folder's model.json names.")
]
SideBySide = Annotated[
    bool,
    typer.Option("--conventions", help="No timing: compare all counting conventions, and explain why they differ."),
]
ArraySize = Annotated[
    str | None,
    typer.Option(
        "--array", metavar="ROWSxCOLUMNS", help="No timing: cycles on an output-stationary systolic array, e.g. 64x64."
    ),
]
Broadcast = Annotated[
    bool, typer.Option("--broadcast-rows", help="With --array: broadcast weights along a row (FuSeConv's array).")
]
Drain = Annotated[
    bool, typer.Option("--drain", help="With --array: drain a fold's results before the next one starts.")
]
LaneSize = Annotated[
    str | None,
    typer.Option(
        "--lanes",
        metavar="CHANNELSxPIXELS",
        help="No timing: cycles on multiplier lanes, with and without parallelism inside the kernel, e.g. 16x36.",
    ),
]
Intra = Annotated[int, typer.Option("--intra", metavar="K", min=1, help="With --lanes: K x K taps a cycle.")]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to", metavar="OP", help="With --array: also try the model with its convolutions swapped to OP (repeatable)."
    ),
]
Where = Annotated[
    str | None, typer.Option("--where", metavar="GLOB", help="With --to: only layers with these names ('layer3.*').")
]


def command(
    context: typer.Context,
    model: ModelWords,
    input: Input = None,
    threads: Threads = None,
    dtype: DtypeOption = Dtype.float32,
    channels_last: ChannelsLast = False,
    device: Device = "cpu",
    convention: Conventions = None,
    conventions: SideBySide = False,
    array: ArraySize = None,
    broadcast_rows: Broadcast = False,
    drain: Drain = False,
    lanes: LaneSize = None,
    intra: Intra = 3,
    to: To = None,
    where: Where = None,
    budget: Budget = 5.0,
    trust_code: TrustCode = False,
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Count and time MODEL layer by layer: params, MACs, bytes, kernels, latency, and what bounds each layer.

    Three options replace the timing. --conventions shows how every tool would count the model. --array 64x64 computes
    cycles on a systolic array, and compares several models, or operators with --to OP. --lanes 16x36 computes cycles
    on multiplier lanes.
    """
    _check(array, lanes, conventions, broadcast_rows or drain, to, where)
    if array is not None or lanes is not None or conventions:
        refuse(context, "applies to the timed profile only", "convention", "budget", "channels_last")
    if lanes is None:
        refuse(context, "applies to --lanes only", "intra")
    check_out(out, overwrite)
    set_threads(threads)
    x = example(shape_of(input, references(model)), dtype, device, channels_last=channels_last)
    if array is not None:
        result: Any = _on_array(references(model), x, array, broadcast_rows, drain, to or [], where, trust_code)
        report(result, json=json, out=out, overwrite=overwrite)
        return
    from leanconv.runs import load

    network = load(reference(model), trust_code=trust_code).to(torch_device(device), torch_dtype(dtype))
    if lanes is not None:
        from leanconv.measure import Lanes, profile_lanes

        result = profile_lanes(network, x, Lanes.parse(lanes, intra))
    elif conventions:
        from leanconv.measure import compare_conventions

        result = compare_conventions(network, x)
    else:
        from leanconv.measure import profile

        if channels_last:
            import torch

            network = network.to(memory_format=torch.channels_last)
        result = profile(network, x, conventions=convention or (), budget_s=budget)
    report(result, json=json, out=out, overwrite=overwrite)


def _check(
    array: str | None, lanes: str | None, conventions: bool, array_only: bool, to: list[str] | None, where: str | None
) -> None:
    """Raise BadInput for options that exclude each other."""
    asked = [name for name, given in (("--array", array), ("--lanes", lanes), ("--conventions", conventions)) if given]
    if len(asked) > 1:
        raise BadInput(f"{' and '.join(asked)}: one at a time")
    if array is None and array_only:
        raise BadInput("--broadcast-rows and --drain describe an array; give its size too: --array 64x64")
    if array is None and to:
        raise BadInput(
            "--to compares operators on an array; give its size too (--array 64x64), or time them with bench"
        )
    if where is not None and not to:
        raise BadInput("--where chooses the layers that --to swaps; give --to OP too")


def _on_array(
    found: list[str],
    x: "Tensor",
    size: str,
    broadcast_rows: bool,
    drain: bool,
    to: list[str],
    where: str | None,
    trust_code: bool,
) -> Any:
    """Profile one model's layers on the array, or compare several models, or one with its convolutions swapped."""
    from leanconv.measure import Array, compare_array, profile_array

    array = Array.parse(size, broadcast_rows=broadcast_rows, drain=drain)
    models, notes = named(found, trust_code), dict[str, str]()
    if to and len(models) > 1:
        raise BadInput(f"--to swaps the convolutions of one model, got {len(models)}; or give the models without --to")
    for model in models.values():
        model.to(x.device, x.dtype)
    for operator in dict.fromkeys(to):
        models[operator], notes[operator] = _swapped(next(iter(models.values())), x, operator, where)
    if len(models) > 1:
        return compare_array(models, x, array, notes=notes)
    return profile_array(next(iter(models.values())), x, array)


def _swapped(model: "nn.Module", x: "Tensor", operator: str, where: str | None) -> tuple["nn.Module", str]:
    """Return a copy of the model with its convolutions swapped, and a note with their number."""
    from leanconv.convert import apply_, plan
    from leanconv.copies import copied

    swapped = copied(model)
    found = plan(swapped, x, to=operator, where=where)
    apply_(swapped, found, init="fresh")
    return swapped, f"{len(found.swapped)} of {len(found)} convolutions"
