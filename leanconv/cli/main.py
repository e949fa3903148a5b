"""`leanconv COMMAND`: one dict lists the commands. A command's module is loaded only when the command is called."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer

from leanconv.cli.streams import patient_streams
from leanconv.cli.wording import as_typed, options_of, usage_said
from leanconv.errors import BadFiles, LeanconvError, UnknownName, by_model, error_line
from leanconv.text import one_line
from leanconv.version import __version__

# command -> its line in `leanconv --help`. The command is the function `command` of leanconv/cli/COMMAND.py.
COMMANDS = {
    "ops": "List the operators: paper, cost on a reference layer, options, what each replaces.",
    "profile": "Count and time a model layer by layer, and show what bounds each layer.",
    "bench": "Compare models: params, MACs, latency, training step.",
    "plan": "Show which convolutions a swap would change, and why the others stay.",
    "search": "Find which operator goes in which layer under a budget of measured latency, MACs, ...",
    "convert": "Swap convolutions and write the model as a run folder.",
    "lean": "Make a trained model lean: search, fit, recover, check, export, in one resumable command.",
    "optimize": "Try every engine of this machine on a model and print the fastest.",
    "recipes": "List the built-in recipes of `train`, or print one to start from.",
    "train": "Train a segmentation or classification model from a recipe, or resume a run.",
    "eval": "Score a run on any split of any data: IoU and Dice, or top-1.",
    "predict": "Find the defects in images of any size: masks, overlays, boxes with scores.",
    "export": "Write a run or model as ONNX, OpenVINO or torch.export, verified against it.",
    "reproduce": "Compare a paper's printed table with our counts and frame rates.",
    "report": "Compare trained runs in one HTML file: counts, frame rate, scores, curves, pictures.",
    "doctor": "List what this machine can run, and what to install for the rest.",
}

_USAGE: Any = typer.BadParameter.__base__  # click's UsageError: versions of typer bundle click differently
_EPILOG = "Every command takes --json (the report for machines) and --debug (tracebacks). Exit 2: usage; 1: failure."


def build(asked: str | None) -> typer.Typer:
    """Build the command line. Only the asked command is loaded; the others have a name and a line of help."""
    app = typer.Typer(
        help="Efficient convolutions that are measurably faster.",
        epilog=_EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for name, line in COMMANDS.items():
        function: Callable[..., Any] = _listed_only
        if name == asked:
            function = import_module(f"leanconv.cli.{name}").command
        app.command(name, short_help=line, help=function.__doc__ or line, epilog=_EPILOG)(function)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def _listed_only() -> None:
    """Placeholder for commands that are not called: only their line of help is needed."""


def main() -> None:
    """The entry point. Errors become one readable line, and `--debug` shows the traceback."""
    debug = "--debug" in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    with patient_streams(), _clean_warnings(debug):
        try:
            status = _called(arguments)
        except Exception as error:
            if debug:
                raise
            print(f"error: {_said(error, arguments)}", file=sys.stderr)
            status = 2 if isinstance(error, UnknownName) else 1
    sys.exit(status)


def _called(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    try:
        return build(_asked(arguments))(arguments, prog_name="leanconv", standalone_mode=False) or 0
    except _USAGE as error:
        # Without arguments the message is the help, which has many lines. Otherwise it may contain a name.
        error.message = (
            usage_said(one_line(error.message), _options(arguments).values()) if arguments else error.message
        )
        error.show()
        return int(error.exit_code)
    except typer.Abort:
        print("Aborted!", file=sys.stderr)
        return 1


def _asked(arguments: list[str]) -> str | None:
    """The command's name: the first word that is no option."""
    return next((word for word in arguments if not word.startswith("-")), None)


def _said(error: Exception, arguments: list[str]) -> str:
    """The line of an error. Errors of a caller's values name the options of the command, not Python's arguments."""
    line = _line(error)
    return as_typed(line, _options(arguments), arguments) if isinstance(error, LeanconvError) else line


def _options(arguments: list[str]) -> dict[str, str]:
    """Python name -> option of the command that was called; empty if it is none of ours."""
    asked = _asked(arguments)
    return options_of(import_module(f"leanconv.cli.{asked}").command) if asked in COMMANDS else {}


def _line(error: Exception) -> str:
    """Format an error as one line that says whose fault it is. Control characters are escaped.

    Several unusable files get one line each.
    """
    if isinstance(error, BadFiles):
        return "\n  ".join(map(one_line, (error.headline, *error.shown)))
    if isinstance(error, LeanconvError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if by_model(error):
        return one_line(
            f"the model does not run: {error_line(error)}; it stopped in its forward pass, --debug shows where"
        )
    return one_line(f"{type(error).__name__}: {error} (a fault of leanconv's; --debug shows where)")


@contextmanager
def _clean_warnings(debug: bool) -> Iterator[None]:
    """Print warnings as one line, without the position in our code."""
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(message)}", file=sys.stderr)
        yield
