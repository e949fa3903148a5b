"""Standard output and error that neither a letter nor a reader who leaves can break: the work goes on."""

import codecs
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from leanconv.errors import BadInput

_STRICT = ("strict", "surrogateescape")  # the second writes a name's bytes as they are, whatever they do
# Our tables' signs where an encoding lacks them; other letters become escapes.
_PLAIN = {"─": "-", "━": "-", "×": "x", "·": "*", "²": "^2", "–": "-", "…": "...", "→": "->", "≈": "~"}


@contextmanager
def patient_streams() -> Iterator[None]:
    """While open, printing fails only where the file that it goes to cannot be written: BadInput, at the end exit 1."""
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
    """A stream of this process: what its encoding lacks is replaced, what nobody reads any more is dropped."""

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
            # What is still in the buffer would fail again when Python ends: it goes nowhere too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL of a pipe without a reader
                raise BadInput(f"standard {self._name} cannot be written: {error.strerror}") from error


def _open_closed() -> None:
    """A closed stream is opened to nowhere: else the next file has its number, and messages would go into it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for letters that the stream's encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters), error.end
