"""`leanconv profile MODEL`: where its parameters, arithmetic, bytes and milliseconds are."""

from typing import Annotated

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
    Threads,
    example,
    reference,
    report,
    set_threads,
    torch_device,
    torch_dtype,
)  # fmt: skip

Conventions = Annotated[
    list[str] | None,
    typer.Option(
        "--convention",
        metavar="NAME",
        help="Also count by this rule (repeatable): macs_weights, macs_trainable, torchstat, thop_old, fuse, od, "
        "fvcore, torch, executed_macs.",
    ),
]
Budget = Annotated[float, typer.Option("--budget", metavar="SECONDS", min=0.0, help="Seconds of timing.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run the Python file that a run folder's model.json names.")
]


def command(
    model: ModelWords,
    input: Input = "1,3,224,224",
    threads: Threads = None,
    dtype: DtypeOption = Dtype.float32,
    channels_last: ChannelsLast = False,
    device: Device = "cpu",
    convention: Conventions = None,
    budget: Budget = 5.0,
    trust_code: TrustCode = False,
    out: Out = None,
    json: Json = False,
) -> None:
    """Count and time MODEL layer by layer: params, MACs, bytes, kernels, latency, and what bounds each layer."""
    set_threads(threads)
    x = example(input, dtype, device, channels_last=channels_last)
    from leanconv.measure import profile
    from leanconv.runs import load

    made = load(reference(model), trust_code=trust_code).to(torch_device(device), torch_dtype(dtype))
    if channels_last:
        import torch

        made = made.to(memory_format=torch.channels_last)
    report(profile(made, x, conventions=convention or (), budget_s=budget), json=json, out=out)
