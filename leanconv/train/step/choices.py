"""The table of the modes that were tried for a training step."""

from dataclasses import dataclass
from typing import Any

from leanconv.measure import Timing
from leanconv.table import number, si, table


@dataclass
class StepChoice:
    """One mode of the step.

    Attributes:
        mode: its name.
        prepare_s: seconds of its first steps and of its check; torch.compile compiles in them.
        timing: of forward, loss and backward, in turns with the other modes. None if it was not timed.
        ratio: the given form's time over this one's: above 1 is faster.
        loss, gradient: relative differences from the given form's loss and whole gradient. None if it was not run.
        peak_bytes: what torch's allocator takes during a step beside parameters and buffers. None if not measured.
        note: why it was chosen, or left out.
    """

    mode: str
    prepare_s: float | None = None
    timing: Timing | None = None
    ratio: float | None = None
    loss: float | None = None
    gradient: float | None = None
    peak_bytes: int | None = None
    chosen: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return self.__dict__ | {"timing": self.timing.to_dict() if self.timing else None}


@dataclass(frozen=True)
class StepChoices:
    """All modes of one step, the device they were measured on, and the winner. Iterates over `StepChoice`."""

    rows: tuple[StepChoice, ...]
    device: str
    seconds: float
    random: bool = False

    @property
    def winner(self) -> StepChoice:
        return next(row for row in self.rows if row.chosen)

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, mode: str) -> StepChoice:
        return next(row for row in self.rows if row.mode == mode)

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "seconds": self.seconds,
            "chosen": self.winner.mode,
            "modes": [row.to_dict() for row in self.rows],
        }

    def __str__(self) -> str:
        columns = [
            "mode",
            "step ms",
            "IQR",
            "faster by",
            "loss differs",
            "gradient",
            "peak memory",
            "prepared s",
            "",
            "why",
        ]
        cells = [
            [
                row.mode,
                number(row.timing.median_ms if row.timing else None, ".4g"),
                number(row.timing.iqr_ms if row.timing else None, ".2g"),
                number(row.ratio, ".2f"),
                number(row.loss, ".1e"),
                number(row.gradient, ".1e"),
                "-" if row.peak_bytes is None else si(row.peak_bytes) + "B",
                number(row.prepare_s, ".1f"),
                "<-" if row.chosen else "",
                row.note,
            ]
            for row in self.rows
        ]
        rounds = next((row.timing.rounds for row in self.rows if row.timing), 0)
        notes = [
            f"{self.device}; {rounds} rounds, in turns; {self.seconds:.0f} s. A step is forward, loss and backward.",
            "The fastest mode with the same loss and gradients wins, if it is faster than the first beyond noise.",
        ]
        if self.random:
            notes.append("The model draws random numbers: losses and gradients are compared without dropout.")
        return table(columns, cells, title="training step", note=notes)
