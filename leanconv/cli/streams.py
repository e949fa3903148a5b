"""Make standard output and error robust against unencodable characters and closed pipes, so that work goes on."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from leanconv.errors import BadInput

_STRICT = ("strict", "surrogateescape")  # the second one writes the raw bytes of a name, even control codes
# Replacements for our tables' signs if an encoding lacks them. Other characters become escapes.
_PLAIN = {"─": "-", "━": "-", "×": "x", "·": "*", "²": "^2", "–": "-", "…": "...", "→": "->", "≈": "~"}


@contextmanager
def patient_streams() -> Iterator[None]:
    """Wrap both streams. Printing then fails only if the output file cannot be written: the exit status becomes 1."""
    _open_closed()
    codecs.register_error("leanconv.nearest", _nearest)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Patient(sys.stdout, "output"), _Patient(sys.stderr, "error")
    try:
        yield
        sys.stdout.flush()
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        sys.stdout, sys.stderr = before


class _Patient:
    """A stream that replaces characters its encoding lacks, and drops output that nobody reads any more."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name
        if isinstance(stream, io.TextIOWrapper) and stream.errors in _STRICT:
            stream.reconfigure(errors="leanconv.nearest")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._guarded():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The rest of the buffer would fail again when Python exits, so send it to the null device.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows raises EINVAL for a pipe without a reader
                raise BadInput(f"standard {self._name} cannot be written: {error.strerror}") from error


def _open_closed() -> None:
    """Open closed streams to the null device. Otherwise the next opened file would receive their messages."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return replacements for characters that the stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters), error.end
