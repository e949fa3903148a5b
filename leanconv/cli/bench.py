"""`leanconv bench MODEL...`: models side by side, timed in turns."""

from typing import Annotated, Any

import typer

from leanconv.cli.common import (
    ENGINES,
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
    bar,
    check_out,
    example,
    named,
    references,
    report,
    set_threads,
    torch_device,
    torch_dtype,
)
from leanconv.cli.profile import Budget, Conventions, TrustCode
from leanconv.errors import BadInput


class _Both:
    """Inference and training step as one report."""

    def __init__(self, inference: Any, training: Any) -> None:
        self.inference, self.training = inference, training

    def to_dict(self) -> dict[str, Any]:
        return {"inference": self.inference.to_dict(), "training": self.training.to_dict()}

    def __str__(self) -> str:
        return f"{self.inference}\n\n{self.training}"


def command(
    models: ModelWords,
    input: Input = "1,3,224,224",
    threads: Threads = None,
    dtype: DtypeOption = Dtype.float32,
    channels_last: ChannelsLast = False,
    device: Device = "cpu",
    convention: Conventions = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="Also a training step: its time in eager and channels_last, its peak memory."),
    ] = False,
    budget: Budget = 10.0,
    clock: Annotated[
        str, typer.Option("--clock", help="wall, or cpu: one thread's own computing time, for a crowded machine.")
    ] = "wall",
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines",
            metavar="all|NAME,...",
            help=f"Each model on these engines, with its roofline floor. Known: {', '.join(ENGINES)}.",
        ),
    ] = None,
    trust_code: TrustCode = False,
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Compare models side by side: params, MACs, latency (the models take turns), FPS; the first is the base.

    Options follow the model they belong to: leanconv bench leanconv:unet base=32 leanconv:unet base=32 conv=splconv.
    With --dtype bfloat16 inference runs the model in bfloat16, a training step runs under bfloat16 autocast, an engine
    computes in bfloat16 on inputs and outputs of float32.
    """
    check_out(out, overwrite)
    set_threads(threads)
    if engines is not None:
        if train or convention or channels_last or device != "cpu":
            raise BadInput("--engines stands alone: without --train, --convention, --channels-last and --device")
        report(
            _engines(models, input, dtype, engines, budget, clock, trust_code), json=json, out=out, overwrite=overwrite
        )
        return
    x = example(input, dtype, device, channels_last=channels_last)
    from leanconv.measure import compare

    found = references(models)
    made = named(found, trust_code)
    for model in made.values():
        model.to(torch_device(device), torch_dtype(dtype))
        if channels_last:
            import torch

            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result: Any = compare(made, x, conventions=convention or (), budget_s=budget, clock=clock)
    if train:
        from leanconv.measure.timing.training import compare_training

        autocast = None if dtype is Dtype.float32 else torch_dtype(dtype)
        steps = compare_training(
            {name: model.float() for name, model in made.items()},
            x.float(),
            settings=("eager", "channels_last"),
            autocast=autocast,
            budget_s=budget,
            clock=clock,
        )
        result = _Both(result, steps)
    report(result, json=json, out=out, overwrite=overwrite)


def _engines(
    models: list[str], input: str, dtype: Dtype, engines: str, budget: float, clock: str, trust_code: bool
) -> Any:
    """The models on each engine, with a bar of what is prepared and measured."""
    from leanconv.engine.peers import compare_engines

    made = {name: model.eval() for name, model in named(references(models), trust_code).items()}
    wanted = None if engines == "all" else engines.split(",")
    with bar() as progress:
        return compare_engines(
            made,
            example(input),
            engines=wanted,
            dtype=None if dtype is Dtype.float32 else torch_dtype(dtype),
            budget_s=budget,
            clock=clock,
            progress=progress,
        )
