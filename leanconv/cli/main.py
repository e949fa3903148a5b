"""`leanconv COMMAND`: one dict from command to module; a module is loaded only when its command is called."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer

from leanconv.cli.streams import patient_streams
from leanconv.errors import BadFiles, LeanconvError, UnknownName, by_model, told
from leanconv.text import one_line
from leanconv.version import __version__

# command -> its line in `leanconv --help`. The command is the function `command` of leanconv/cli/COMMAND.py.
COMMANDS = {
    "ops": "List the operators: paper, cost on a reference layer, options, what each replaces.",
    "profile": "Count and time a model layer by layer, and say what bounds each layer.",
    "bench": "Compare models side by side: params, MACs, latency, training step.",
    "plan": "Show which convolutions a swap would change, and why the others stay.",
    "convert": "Swap convolutions and write the model as a run folder.",
    "optimize": "Try every engine of this machine on a model; print what is fastest.",
    "train": "Train a segmentation model as a recipe says; --resume goes on with a run.",
    "eval": "IoU and Dice of a run on any split of any data.",
    "predict": "Find the defects in images of any size: masks, overlays, boxes with scores.",
    "export": "Write a run or model as ONNX, OpenVINO or torch.export, checked against it.",
    "reproduce": "A paper's printed table beside our counts of the real modules, and our frame rates.",
    "report": "Compare trained runs in one HTML file: counts, frame rate, scores, curves, pictures.",
    "doctor": "What this machine can run, and what to install for the rest.",
}

_USAGE: Any = typer.BadParameter.__base__  # click's UsageError; who bundles click differs between versions of typer
_EPILOG = "Every command takes --json (the report for machines) and --debug (tracebacks). Exit 2: usage; 1: failure."


def build(asked: str | None) -> typer.Typer:
    """The command line with the asked command loaded and every other one a name with its line of help."""
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
    """Stands in the list of commands; replaced by the command's own function when it is the one asked for."""


def main() -> None:
    """The entry point: one readable line for what a user can cause, a traceback only with `--debug`."""
    debug = "--debug" in sys.argv[1:]
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    with patient_streams(), _clean_warnings(debug):
        try:
            status = _called(arguments)
        except Exception as error:
            if debug:
                raise
            print(f"error: {_line(error)}", file=sys.stderr)
            status = 2 if isinstance(error, UnknownName) else 1
    sys.exit(status)


def _called(arguments: list[str]) -> int:
    """Run the command that the words ask for; its exit status."""
    asked = next((word for word in arguments if not word.startswith("-")), None)
    try:
        return build(asked)(arguments, prog_name="leanconv", standalone_mode=False) or 0
    except _USAGE as error:
        # With no words at all the message is the help, of many lines; else a name may stand in it.
        error.message = one_line(error.message) if arguments else error.message
        error.show()
        return int(error.exit_code)
    except typer.Abort:
        print("Aborted!", file=sys.stderr)
        return 1


def _line(error: Exception) -> str:
    """An error in one line that says whose it is; a file's text in it moves no cursor of the terminal.

    Of several files each is told in a line of its own.
    """
    if isinstance(error, BadFiles):
        return "\n  ".join(map(one_line, (error.headline, *error.shown)))
    if isinstance(error, LeanconvError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return one_line(f"{os.fsdecode(error.filename)}: {error.strerror}")
    if by_model(error):
        return one_line(f"the model does not run: {told(error)}; it stopped in its forward pass, --debug shows where")
    return one_line(f"{type(error).__name__}: {error} (a fault of leanconv's; --debug shows where)")


@contextmanager
def _clean_warnings(debug: bool) -> Iterator[None]:
    """A warning is one line without the place in our code and its source line."""
    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(message)}", file=sys.stderr)
        yield
