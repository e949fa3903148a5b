"""`leanconv optimize MODEL`: try the engines and print the fastest."""

from enum import StrEnum
from typing import Annotated

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
    report,
    set_threads,
    torch_device,
    torch_dtype,
)


class Arithmetic(StrEnum):
    lean = "lean"
    direct = "direct"
    fewest = "fewest"


def command(
    model: ModelWords,
    input: Input = "1,3,224,224",
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
    device: Device = "cpu",
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run Python code that a run folder's model.json names.")
    ] = False,
    out: Out = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Fold MODEL, try every engine of this machine on it, and print the table of choices.

    Inputs and outputs are float32. --dtype bfloat16 lets the engines compute in bfloat16 if that is faster.
    """
    check_out(out, overwrite)
    set_threads(threads)
    from leanconv.engine import optimize
    from leanconv.runs import load

    network = load(reference(model), trust_code=trust_code).to(torch_device(device)).eval()
    inside = None if dtype is Dtype.float32 else torch_dtype(dtype)
    words = None if engines is None else [word.strip() for word in engines.split(",") if word.strip()]
    result = optimize(
        network,
        example(input, device=device),
        dtype=inside,
        engines=words,
        budget_s=budget,
        arithmetic=None if arithmetic is None else arithmetic.value,
    )
    report(result.choices, json=json, out=out, overwrite=overwrite)
