"""Progress of a training: a bar with loss, score and time left (a line a minute in a log), lines, TensorBoard, CSV."""

import csv
import io
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from leanconv.extras import needs
from leanconv.files import write_atomic
from leanconv.text import printable

_EVERY = 60.0  # seconds between lines of progress where no terminal shows a bar


class Reporter:
    """Shows and writes nothing unless `active` (the main process); shows nothing without `visible`.

    Everything goes to standard error: standard output belongs to the report of the command.
    """

    def __init__(self, *, active: bool, visible: bool, notes: set[str] | None = None) -> None:
        """`notes`: those that were shown already."""
        self.notes = set() if notes is None else notes
        self.active, self.visible = active, visible and active
        self.console = Console(stderr=True, highlight=False, quiet=not self.visible)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[label]} {task.fields[score]}"),
            console=self.console,
            disable=not (self.visible and self.console.is_terminal),
        )
        self.task = TaskID(0)
        self.writer: Any = None
        self._said = time.monotonic()

    @contextmanager
    def running(self, events: Path, start: int, total: int, label: str) -> Iterator[None]:
        """Open the bar at `start` of `total` steps; `events`: folder of the figures; `label`: name of the score."""
        if self.active:
            with needs("tensorboard", "train"):
                from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(events), purge_step=start or None)
        self.bar.start()
        self.task = self.bar.add_task("train", total=total, completed=start, loss="-", label=label, score="-")
        try:
            yield
        finally:
            self.bar.stop()
            if self.writer is not None:
                self.writer.close()
                self.writer = None

    def say(self, text: str) -> None:
        """Print lines above the bar."""
        self._said = time.monotonic()
        self.console.print(printable(text), markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Print a line, but never the same one twice."""
        if text not in self.notes:
            self.notes.add(text)
            self.say(text)

    def step(self, step: int, **shown: float) -> None:
        """One step is done; `shown` replaces the figures beside the bar. In a log they are a line a minute."""
        fields: dict[str, Any] = {key: f"{value:.3f}" for key, value in shown.items()}
        self.bar.update(self.task, completed=step, **fields)
        if self.bar.disable and self.visible and time.monotonic() - self._said >= _EVERY:
            now = self.bar.tasks[self.task]
            left = f"  {max(1, round(now.time_remaining / 60))} min left" if now.time_remaining else ""
            self.say(f"step {step} of {now.total:.0f}  loss {now.fields['loss']}{left}")

    def log(self, step: int, **values: float) -> None:
        """Write a step's figures to TensorBoard."""
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(key, value, step)

    def validating(self, done: int, images: int) -> None:
        """Validation has finished `done` of `images`."""
        self.bar.update(self.task, description=f"validate {done}/{images}" if done < images else "train")

    def reconstructing(self, done: int, steps: int) -> None:
        """The block-wise phase has done so many of its steps."""
        self.bar.update(self.task, description=f"blocks {done}/{steps}" if done < steps else "train")

    def racing(self, mode: str, share: float) -> None:
        """A mode of the step is tried; `share` of the race is done."""
        self.bar.update(self.task, description=f"step: {mode} {share:.0%}" if share < 1 else "train")

    def epoch(
        self, row: dict[str, Any], epochs: int, shown: Sequence[tuple[str, str]], scores: Sequence[str], *, best: bool
    ) -> None:
        """Print a validated epoch's `shown` (label, key) scores, and write all `scores` to TensorBoard."""
        words = "  ".join(f"{label} {row[key]:.4f}" for label, key in shown)
        self.say(
            f"epoch {row['epoch']}/{epochs}  step {row['step']}  loss {row['loss']:.4f}  {words}  "
            f"{row['seconds']:.0f} s{'  best' if best else ''}"
        )
        self.log(row["step"], **{f"val/{key}": row[key] for key in scores})


def write_history(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite all validated epochs as CSV: a resumed run repeats no row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())
