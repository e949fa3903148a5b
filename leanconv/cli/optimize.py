"""`leanconv optimize MODEL`: try the engines and print the fastest."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.common import (
    ENGINES,
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
    reference,
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


class Arithmetic(StrEnum):
    lean = "lean"
    direct = "direct"
    fewest = "fewest"


def command(
    context: typer.Context,
    model: ModelWords,
    input: Input = None,
    threads: Threads = None,
    dtype: DtypeOption = Dtype.float32,
    engines: Annotated[
        str | None,
        typer.Option("--engines", help=f"Comma-separated, any of: {', '.join(ENGINES)}."),
    ] = None,
    budget: Annotated[
        float, typer.Option("--budget", help="Seconds in all. The report begins with engines that did not fit.")
    ] = 90.0,
    arithmetic: Annotated[
        Arithmetic | None,
        typer.Option(
            "--arithmetic",
            help="Where our kernels save products (Strassen, Winograd): lean, in 1x1 and in the sums of our operators; "
            "direct, nowhere; fewest, in dense 3x3 too. Default: LEANCONV_ARITHMETIC, else lean.",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also try engines in int8, with ranges from the images of --data.")
    ] = False,
    data: Annotated[
        str,
        typer.Option("--data", help="With --int8: images, with or without labels (default: a run's training data)."),
    ] = "",
    max_loss: Annotated[
        float, typer.Option("--max-loss", help="With --int8: the largest relative squared error of the outputs.")
    ] = 0.005,
    device: Device = "cpu",
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run Python code that a run folder's model.json names.")
    ] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fold MODEL, try every engine of this machine on it, and print the table of choices.

    Inputs and outputs are float32. --dtype bfloat16 lets the engines compute in bfloat16 if that is faster. --int8 lets
    them compute in int8. A few dozen images of the train split are cut to the size of --input. On these, the outputs
    may differ from float by --max-loss. What differs more is refused, and the table names the layers that cost most.
    """
    check_out(out, overwrite)
    if not int8:
        refuse(context, "is for --int8", "data", "max_loss")
    elif dtype is not Dtype.float32:
        raise BadInput(f"--int8 --dtype {dtype.value}: one second type at a time; leave one of them out")
    set_threads(threads)
    from leanconv.engine import optimize
    from leanconv.runs import load

    named = reference(model)
    network = load(named, trust_code=trust_code).to(torch_device(device)).eval()
    x = example(shape_of(input, [named]), device=device)
    inside: dict[str, Any] = {} if dtype is Dtype.float32 else {"dtype": torch_dtype(dtype)}
    if int8:
        inside = _int8(named, network, x, data) | {"max_loss": max_loss}
    words = None if engines is None else [word.strip() for word in engines.split(",") if word.strip()]
    result = optimize(
        network,
        x,
        **inside,
        engines=words,
        budget_s=budget,
        arithmetic=None if arithmetic is None else arithmetic.value,
    )
    report(result.choices, json=json, out=out, overwrite=overwrite)


def _int8(named: str, network: "nn.Module", x: "Tensor", data: str) -> dict[str, Any]:
    """The arguments of `optimize` for int8. Raises BadInput without images."""
    import torch

    from leanconv.planner.pictures import of_size, picture_batches, run_of
    from leanconv.train.recipe import Recipe

    run = run_of(named)
    source = data or (Recipe.read(run.recipe).data if run and run.recipe.is_file() else "")
    if not source:
        raise BadInput("--int8 takes its ranges from images: give --data, a few dozen are enough")
    if x.dim() != 4:
        raise BadInput(f"--int8 needs four sizes N,C,H,W in --input, got {x.dim()}")
    batches = picture_batches(source, network, run=run, size=x.shape[-1])
    return {"dtype": torch.int8, "data": of_size(batches, x.shape[2], x.shape[3])}
