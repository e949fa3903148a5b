"""The progress bar of `search`: what is done now, and the time left."""

import sys
from types import TracebackType


class Progress:
    """A bar on standard error that disappears at the end; invisible unless that is a terminal."""

    def __init__(self, *, visible: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("search: {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not (visible and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, what: str, steps: int) -> None:
        """A new part of the work with so many steps."""
        self._bar.reset(self._task, total=steps, description=what)

    def step(self, what: str = "") -> None:
        """One step is done; `what` comes next."""
        self._bar.advance(self._task)
        if what:
            self._bar.update(self._task, description=what)
