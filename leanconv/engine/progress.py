"""The progress bar of `optimize`."""

import sys


class Progress:
    """A progress bar on stderr. It stays invisible if stderr is not a terminal."""

    def __init__(self, total: int, *, visible: bool = True) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        columns = TextColumn("optimize: {task.description}", markup=False), BarColumn(), TimeElapsedColumn()
        self._bar = Bar(*columns, console=console, transient=True, disable=not (visible and sys.stderr.isatty()))
        self._task = self._bar.add_task("folding", total=total)
        self._done = 0

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, what: str) -> None:
        self._bar.update(self._task, description=what)

    def advance(self) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done)

    def part(self, share: float) -> None:
        self._bar.update(self._task, completed=self._done + share)
