"""Run the quantisers of other projects without their output, their logging set-up and their telemetry."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from leanconv.deploy.openvino import openvino_core
from leanconv.deploy.program import quiet
from leanconv.extras import needs


@contextmanager
def still() -> Iterator[None]:
    """`quiet`, for libraries that also log to the root logger: its first message would set up logging for good."""
    root, nothing = logging.getLogger(), logging.NullHandler()
    before = logging.root.manager.disable
    with quiet():
        root.addHandler(nothing)
        logging.disable(logging.ERROR)
        try:
            yield
        finally:
            logging.disable(before)
            root.removeHandler(nothing)


def load_nncf() -> Any:
    """The module `nncf`. Raises MissingExtra without it.

    NNCF sends telemetry and writes a file for it into the home directory unless its telemetry library is missing. This
    import makes it so: whoever wants it imports nncf first.
    """
    if "nncf" in sys.modules:
        return sys.modules["nncf"]
    name = "openvino_telemetry"
    held: ModuleType | None = sys.modules.get(name)
    was = name in sys.modules
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        with still(), needs("nncf", "export"):
            import nncf
    finally:
        if was:
            sys.modules[name] = held  # type: ignore[assignment]
        else:
            del sys.modules[name]
    return nncf


@contextmanager
def one_core() -> Iterator[None]:
    """Give NNCF the process's one `openvino.Core`. `openvino_core` says why a second one must not be freed."""
    core = openvino_core()
    with needs("openvino", "export"):
        import openvino
    own = openvino.Core
    openvino.Core = lambda *args, **kwargs: core  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        openvino.Core = own  # type: ignore[misc]
