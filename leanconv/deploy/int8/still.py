"""Run the quantisers of other projects without their output and their logging set-up."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    """The module `nncf`. Raises MissingExtra without it."""
    if "nncf" not in sys.modules:
        with still(), needs("nncf", "export"):
            import nncf  # noqa: F401
    return sys.modules["nncf"]


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
