"""`leanconv bench MODEL...`: compare models, timed in turns."""

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
    shape_of,
    torch_device,
    torch_dtype,
)
from leanconv.cli.profile import Budget, Conventions, TrustCode
from leanconv.errors import BadInput


class _Both:
    """One report of inference and training step."""

    def __init__(self, inference: Any, training: Any) -> None:
        self.inference, self.training = inference, training

    def to_dict(self) -> dict[str, Any]:
        return {"inference": self.inference.to_dict(), "training": self.training.to_dict()}

    def __str__(self) -> str:
        return f"{self.inference}\n\n{self.training}"


def command(
    models: ModelWords,
    input: Input = None,
    threads: Threads = None,
    dtype: DtypeOption = Dtype.float32,
    channels_last: ChannelsLast = False,
    device: Device = "cpu",
    convention: Conventions = None,
    train: Annotated[
        bool,
        typer.Option(
            "--train", help="Also time a training step in eager and channels_last, and measure its peak memory."
        ),
    ] = False,
    budget: Budget = 10.0,
    clock: Annotated[
        str, typer.Option("--clock", help="wall, or cpu: one thread's processor time, for a busy machine.")
    ] = "wall",
    engines: Annotated[
        str | None,
        typer.Option(
            "--engines",
            metavar="all|NAME,...",
            help=f"Time each model on these engines, with its roofline floor. Known: {', '.join(ENGINES)}.",
        ),
    ] = None,
    trust_code: TrustCode = False,
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Compare models: params, MACs, latency (timed in turns), FPS. Ratios are relative to the first model.

    Options follow their model: leanconv bench leanconv:unet base=32 leanconv:unet base=32 conv=splconv.
    With --dtype bfloat16, inference runs in bfloat16, and a training step runs under bfloat16 autocast. An engine
    computes in bfloat16 on float32 inputs and outputs.
    """
    check_out(out, overwrite)
    set_threads(threads)
    shape = shape_of(input, references(models))
    if engines is not None:
        if train or convention or channels_last or device != "cpu":
            raise BadInput("--engines cannot be combined with --train, --convention, --channels-last or --device")
        report(
            _engines(models, shape, dtype, engines, budget, clock, trust_code), json=json, out=out, overwrite=overwrite
        )
        return
    x = example(shape, dtype, device, channels_last=channels_last)
    from leanconv.measure import compare

    found = references(models)
    models_by_name = named(found, trust_code)
    for model in models_by_name.values():
        model.to(torch_device(device), torch_dtype(dtype))
        if channels_last:
            import torch

            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    result: Any = compare(models_by_name, x, conventions=convention or (), budget_s=budget, clock=clock)
    if train:
        from leanconv.measure.timing.training import compare_training

        autocast = None if dtype is Dtype.float32 else torch_dtype(dtype)
        steps = compare_training(
            {name: model.float() for name, model in models_by_name.items()},
            x.float(),
            settings=("eager", "channels_last"),
            autocast=autocast,
            budget_s=budget,
            clock=clock,
        )
        result = _Both(result, steps)
    report(result, json=json, out=out, overwrite=overwrite)


def _engines(
    models: list[str], shape: str, dtype: Dtype, engines: str, budget: float, clock: str, trust_code: bool
) -> Any:
    """Time the models on each engine and show a progress bar."""
    from leanconv.engine.peers import compare_engines

    models_by_name = {name: model.eval() for name, model in named(references(models), trust_code).items()}
    wanted = None if engines == "all" else engines.split(",")
    with bar() as progress:
        return compare_engines(
            models_by_name,
            example(shape),
            engines=wanted,
            dtype=None if dtype is Dtype.float32 else torch_dtype(dtype),
            budget_s=budget,
            clock=clock,
            progress=progress,
        )
