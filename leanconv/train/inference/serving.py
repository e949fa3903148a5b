"""How prediction gets a faster form of its model: the caller passes a function, since the engines know no training."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from torch import nn

T = TypeVar("T")


class Left:
    """Counts the pictures that come after the present one. Calling it gives their number; None if nobody knows it."""

    def __init__(self, count: int | None) -> None:
        self._count, self._begun = count, 0

    def __call__(self) -> int | None:
        return None if self._count is None else max(0, self._count - self._begun)

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """The same items; each one that is taken has begun."""
        for item in items:
            self._begun += 1
            yield item

    def done(self, count: int) -> None:
        """So many pictures are done, and the next one begins."""
        self._begun = count + 1


# (model, where choices are kept or None, pictures left) -> the model, or another one with the same answers.
Serve = Callable[[nn.Module, Path | None, Left], AbstractContextManager[nn.Module]]


@contextmanager
def plainly(model: nn.Module, folder: Path | None, left: Left) -> Iterator[nn.Module]:
    """The model itself, in plain PyTorch."""
    yield model
