"""The errors that a user can meet. Each message states the problem, the value and the remedy in one line."""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from traceback import walk_tb
from types import FrameType

from leanconv.text import one_line

_FAULTS = 8  # number of faults in one message


class LeanconvError(Exception):
    """The parent of every error that a caller or a file can cause. Any other exception is a bug of ours.

    `str` returns one printable line, whatever names it contains.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class UnsupportedConv(LeanconvError, ValueError):
    """An operator cannot replace this convolution. The message names the value and what to type instead."""


class UnknownName(LeanconvError, ValueError):
    """An unknown name (operator, option, recipe key, model). The message lists or suggests known ones."""


class BadInput(LeanconvError, ValueError):
    """An unusable value or file: an image, a mask, a recipe, a shape, an argument."""


class BadFiles(BadInput):
    """Several of `count` files are unusable. `faults` has one line for each file, the message has the first few."""

    def __init__(self, faults: Sequence[str], count: int) -> None:
        self.faults, self.count = tuple(faults), count
        super().__init__(f"{self.headline}: {'; '.join(self.shown)}")

    @property
    def headline(self) -> str:
        """The number of unusable files."""
        return f"{len(self.faults):,} of {self.count:,} images cannot be used"

    @property
    def shown(self) -> list[str]:
        """The first faults and the number of further ones."""
        more = len(self.faults) - _FAULTS
        return [*self.faults[:_FAULTS], *([f"and {more:,} more"] if more > 0 else [])]


class BadCheckpoint(LeanconvError, RuntimeError):
    """A run folder or weight file is damaged, belongs to another model, or is no safetensors file."""


class UntrustedCode(LeanconvError, RuntimeError):
    """A file asks to run foreign Python code. Pass `--trust-code` (or `trust_code=True`) if you trust it."""


class MissingExtra(LeanconvError, ImportError):
    """An optional library is not installed. The message says what to install."""


class ExportMismatch(LeanconvError, RuntimeError):
    """The exported file does not compute the same as the model. No file was left behind."""


class Diverged(LeanconvError, RuntimeError):
    """The loss became NaN or infinite. The last good checkpoint was kept."""


class Interrupted(LeanconvError, RuntimeError):
    """The user stopped a run. The message says where it was saved and how to resume."""


def error_line(error: BaseException, *, of_function: bool = False) -> str:
    """Return the error of a user's model in one line: type, first line of the message, position in its code.

    of_function: a function of the user's raised it, which need not have called a model.
    """
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    foreign = ("torch", "leanconv", *sys.stdlib_module_names)
    frames = walk_tb(error.__traceback__) if of_function else _inside_model(error)
    places = [(frame.f_code, number) for frame, number in frames if _room(frame)[0] not in foreign]
    places = [(code, number) for code, number in places if not _installed(code.co_filename)] or places
    place = "".join(f" ({Path(c.co_filename).name}, line {number}, in {c.co_name})" for c, number in places[-1:])
    return f"{type(error).__name__}{': ' if line else ''}{line}{place}"


def _installed(file: str) -> bool:
    """Whether a file belongs to an installed library, not to the user."""
    return any(Path(file).is_relative_to(sysconfig.get_path(kind)) for kind in ("purelib", "platlib"))


def by_model(error: BaseException) -> bool:
    """Whether a model's forward raised the error, including our layers but not code that calls or watches the model."""
    inside = list(_inside_model(error))
    ours = [_room(frame)[1:2] for frame, _ in inside if _room(frame)[0] == "leanconv" and not _watches(frame)]
    return bool(inside) and all(room in (("nn",), ("models",), ("ops",)) for room in ours)


def _inside_model(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """Yield the traceback's frames and lines from the first call of an `nn.Module` on."""
    called = False
    for frame, number in walk_tb(error.__traceback__):
        called = called or (frame.f_code.co_name == "_call_impl" and _room(frame)[:2] == ("torch", "nn"))
        if called:
            yield frame, number


def _room(frame: FrameType) -> tuple[str, ...]:
    return tuple(str(frame.f_globals.get("__name__", "")).split("."))


def _watches(frame: FrameType) -> bool:
    """Whether the frame is a counter's, which only passes an operation on."""
    return frame.f_code.co_name in ("__torch_function__", "__torch_dispatch__")
