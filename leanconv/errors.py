"""The errors a user can meet. Each message says what, which value, and what to do, in one line."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from traceback import walk_tb
from types import FrameType

from leanconv.text import one_line

_FAULTS = 8  # that are shown at once


class LeanconvError(Exception):
    """The parent of every error that a caller or a file can cause; anything else is a bug of ours.

    `str` is one line that a terminal can take, whatever name stands in it.
    """

    def __str__(self) -> str:
        return one_line(super().__str__())


class UnsupportedConv(LeanconvError, ValueError):
    """An operator cannot stand for this convolution; the message names the value and what to type instead."""


class UnknownName(LeanconvError, ValueError):
    """A name (operator, option, recipe key, model) that nobody registered; the message lists or suggests known ones."""


class BadInput(LeanconvError, ValueError):
    """A value or a file that cannot be used as it is: an image, a mask, a recipe, a shape, an argument."""


class BadFiles(BadInput):
    """Several files that cannot be used, of `count`; `faults` has a line of each, the message the first few."""

    def __init__(self, faults: Sequence[str], count: int) -> None:
        self.faults, self.count = tuple(faults), count
        super().__init__(f"{self.headline}: {'; '.join(self.shown)}")

    @property
    def headline(self) -> str:
        """How many there are."""
        return f"{len(self.faults):,} of {self.count:,} images cannot be used"

    @property
    def shown(self) -> list[str]:
        """The first faults, and how many more there are."""
        more = len(self.faults) - _FAULTS
        return [*self.faults[:_FAULTS], *([f"and {more:,} more"] if more > 0 else [])]


class BadCheckpoint(LeanconvError, RuntimeError):
    """A run folder or a weight file that is damaged, of another model, or not safetensors at all."""


class UntrustedCode(LeanconvError, RuntimeError):
    """A file asks to run somebody's Python code; say `--trust-code` (or `trust_code=True`) if you trust it."""


class MissingExtra(LeanconvError, ImportError):
    """An optional library is not installed; the message says what to install."""


class ExportMismatch(LeanconvError, RuntimeError):
    """The exported file does not compute what the model computes; nothing was left behind."""


class Diverged(LeanconvError, RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


class Interrupted(LeanconvError, RuntimeError):
    """The user stopped a run; the message says where it was saved and how to resume."""


def told(error: BaseException) -> str:
    """An error of somebody's model in one line: type, first line of the message, and the place in that model's code."""
    line = next(iter(str(error).strip().splitlines()), "")[:300]
    foreign = ("torch", "leanconv", *sys.stdlib_module_names)
    places = [(frame.f_code, number) for frame, number in _inside_model(error) if _room(frame)[0] not in foreign]
    place = "".join(f" ({Path(c.co_filename).name}, line {number}, in {c.co_name})" for c, number in places[-1:])
    return f"{type(error).__name__}{': ' if line else ''}{line}{place}"


def by_model(error: BaseException) -> bool:
    """Whether a model's forward raised it, whose layers may be ours: not what calls or watches the model."""
    inside = list(_inside_model(error))
    ours = [_room(frame)[1:2] for frame, _ in inside if _room(frame)[0] == "leanconv" and not _watches(frame)]
    return bool(inside) and all(room in (("nn",), ("models",), ("ops",)) for room in ours)


def _inside_model(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames of the traceback from the first call of an `nn.Module` on, with their lines."""
    called = False
    for frame, number in walk_tb(error.__traceback__):
        called = called or (frame.f_code.co_name == "_call_impl" and _room(frame)[:2] == ("torch", "nn"))
        if called:
            yield frame, number


def _room(frame: FrameType) -> tuple[str, ...]:
    return tuple(str(frame.f_globals.get("__name__", "")).split("."))


def _watches(frame: FrameType) -> bool:
    """A counter's frame that only passes an operation on."""
    return frame.f_code.co_name in ("__torch_function__", "__torch_dispatch__")
