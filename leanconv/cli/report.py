"""`leanconv report RUN...`: compare trained runs in one HTML file."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from leanconv.cli.common import Device, Json, Overwrite, Threads, refuse, torch_device
from leanconv.cli.common import report as print_report
from leanconv.files import check_own
from leanconv.text import one_line


def command(
    context: typer.Context,
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders. Ratios are relative to the first.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The HTML file to write.")] = Path("report.html"),
    overwrite: Overwrite = False,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data for scores and pictures (default: the first run's training data)."),
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "test",
    threads: Threads = None,
    device: Device = "cpu",
    cases: Annotated[
        int | None,
        typer.Option("--cases", min=0, help="Most pictures, for runs that find defects.", show_default="9"),
    ] = None,
    budget: Annotated[float, typer.Option("--budget", min=0.0, help="Seconds of timing in all (0: no timing).")] = 10.0,
    optimize: Annotated[
        float, typer.Option("--optimize", min=0.0, help="Seconds to optimize each model (0: plain PyTorch).")
    ] = 60.0,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="Run the Python file that a run's model.json names.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare trained runs: counts, measured frame rate, scores, curves and pictures in one offline HTML file."""
    check_own(out, overwrite)
    if not budget and optimize:
        refuse(context, "has no effect with --budget 0", "optimize")
    from leanconv.report import compare_runs, write_report

    report = compare_runs(
        runs,
        data=data,
        split=split,
        threads=threads,
        device=str(torch_device(device)),
        budget_s=budget,
        cases=cases,
        optimize_s=optimize,
        trust_code=trust_code,
        say=_say,
    )
    asked = ["--data", data] if data else []
    report.command = shlex.join(["leanconv", "report", *map(str, runs), *asked, "--split", split])
    print_report(report, json=json)  # first: `out` may be unwritable
    written = write_report(report, out)
    print(one_line(f"wrote {written}"), file=sys.stderr)


def _say(text: str) -> None:
    print(one_line(f"{text} ..."), file=sys.stderr, flush=True)
