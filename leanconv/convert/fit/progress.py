"""The progress bar of a fit."""

import sys

from leanconv.text import one_line


class Progress:
    """A bar on stderr, a step per layer and block. It stays invisible if stderr is not a terminal."""

    def __init__(self, total: int, *, visible: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("fit: {task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )  # fmt: skip
        shown = visible and sys.stderr.isatty()
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True, disable=not shown)
        self._task = self._bar.add_task("looking", total=total)

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, what: str) -> None:
        self._bar.update(self._task, description=one_line(what))

    def advance(self) -> None:
        self._bar.advance(self._task)
