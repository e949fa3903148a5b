"""The progress bar of long work."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from leanconv.text import one_line

T = TypeVar("T")


def tracked(steps: Iterable[T], what: str, *, progress: bool, count: int | None = None) -> Iterator[T]:
    """Iterate; on a terminal with a bar on standard error that disappears at the end."""
    if not (progress and sys.stderr.isatty()):
        yield from steps
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(steps, what, total=count, console=Console(stderr=True), transient=True)


class Progress:
    """A bar on standard error that disappears at the end. It is invisible unless that is a terminal."""

    def __init__(
        self, name: str, total: float | None = None, *, visible: bool = True, counted: bool = False, left: bool = False
    ) -> None:
        """Make a bar; `with` shows it.

        Args:
            name: of the work, before what is done now.
            total: the number of steps; None until `begin`.
            counted: show how many of the steps are done.
            left: show the time left instead of the time so far.
        """
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn(f"{name}: {{task.description}}", markup=False),
            BarColumn(),
            *([MofNCompleteColumn()] if counted else []),
            TimeRemainingColumn() if left else TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not (visible and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("", total=total)
        self._done = 0

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, what: str, steps: int) -> None:
        """A new part of the work with so many steps."""
        self._done = 0
        self._bar.reset(self._task, total=steps, description=one_line(what))

    def show(self, what: str) -> None:
        """Say what is done now."""
        self._bar.update(self._task, description=one_line(what))

    def advance(self, what: str = "") -> None:
        """One step is done; `what` comes next."""
        self._done += 1
        self._bar.update(self._task, completed=self._done)
        if what:
            self.show(what)

    def part(self, share: float) -> None:
        """So much of the present step is done."""
        self._bar.update(self._task, completed=self._done + share)
