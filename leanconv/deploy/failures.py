"""The errors of runtimes and converters, each as one line."""

import re

from leanconv.errors import LeanconvError

# OpenVINO's messages begin with locations in its own source. The reason follows below.
_OPENING = re.compile(r"Exception from |Check '.*' failed at |FrontEnd API failed with |Model wasn't fully |Summary:")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def first_line(error: BaseException) -> str:
    """Return "RuntimeError: what happened" in at most 200 characters. An error of ours is one line already."""
    if isinstance(error, LeanconvError):
        return str(error)
    lines = [line.strip(" -") for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    reasons = [line for line in lines if not _OPENING.match(line)] or lines or [""]
    return f"{type(error).__name__}: {reasons[0]}"[:200]


def root_cause(error: BaseException) -> str:
    """Return the first line of the innermost cause. Converters wrap it in pages of advice."""
    while error.__cause__ is not None and not isinstance(error, LeanconvError):
        error = error.__cause__
    return first_line(error)
