"""Optional libraries: test whether they are installed, and say what to do if one is missing or does not import."""

import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from leanconv.errors import LeanconvError, MissingExtra

# Libraries whose import name differs from their name in pip.
MODULES = {"pillow": "PIL", "segmentation-models-pytorch": "segmentation_models_pytorch"}

# Libraries that send telemetry, and write files for it into the home directory, unless this library is missing.
SENDERS, TELEMETRY = ("openvino", "nncf"), "openvino_telemetry"
_HIDING = threading.RLock()


def installed(module: str) -> bool:
    """Whether a module of that name can be found. It is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a foreign finder may raise; a loaded module may lack a spec
        return False


@contextmanager
def needs(library: str, extra: str) -> Iterator[None]:
    """Guard imports, and imports only: `with needs("openvino", "export"): import openvino`.

    What is imported here sends no telemetry. Whoever wants it imports the library first.
    Raises: MissingExtra if the library is not installed, lacks a dependency, or does not import.
    """
    try:
        with _without_telemetry(library):
            yield
    except LeanconvError:
        raise
    except Exception as error:  # an import may raise anything
        raise MissingExtra(_message(library, extra, error)) from error


@contextmanager
def _without_telemetry(library: str) -> Iterator[None]:
    """Inside, a library that would send telemetry does not find the one that does it."""
    if library not in SENDERS or library in sys.modules:
        yield
        return
    with _HIDING:
        missing = object()
        before = sys.modules.get(TELEMETRY, missing)
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
        try:
            yield
        finally:
            if before is missing:
                sys.modules.pop(TELEMETRY, None)
            else:
                sys.modules[TELEMETRY] = before  # type: ignore[assignment]


def _message(library: str, extra: str, error: Exception) -> str:
    own, install = MODULES.get(library, library), f"pip install 'leanconv[{extra}]'"
    if isinstance(error, ModuleNotFoundError) and error.name:
        if error.name == own or (error.name.split(".")[0] == own and not installed(own)):
            return f"{library} is not installed: {install}"
        if error.name.split(".")[0] == own:
            return f"{library} is installed without {error.name}, too old or in part: pip install -U {library}"
        return f"{library} needs {error.name}, which is not installed: {install}"
    line = next(iter(str(error).splitlines()), "")[:200].rstrip(".")
    if "home directory" in line:
        advice = "it looks for a home directory: set HOME to a folder"
    else:
        advice = f"reinstall it: pip install --force-reinstall {library}"
    return f"{library} is installed but does not import: {type(error).__name__}: {line}; {advice}"
