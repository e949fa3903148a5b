"""The table of everything that `optimize` tried, and the rule that decides which of two forms is faster."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.agreement import Error
from leanconv.measure import Timing
from leanconv.table import number, table

# Tie-break: among forms whose times differ by less than this share, take the simplest.
TIE = 0.01
# A median is smaller only if it differs by this share and by this many standard errors.
MARGIN, SIGMAS = 0.03, 2.0


def faster(challenger: Timing, given: Timing) -> bool:
    """Whether the challenger's median is below the given model's beyond noise."""
    gain = given.median_ms - challenger.median_ms
    noise = math.hypot(_standard_error(challenger), _standard_error(given))
    return gain > max(MARGIN * given.median_ms, SIGMAS * noise)


def _standard_error(timing: Timing) -> float:
    """Standard error of the median, 1.253·σ/√n. Normal noise is assumed, so that σ = IQR/1.349."""
    return 1.253 * timing.iqr_ms / 1.349 / math.sqrt(timing.rounds)


@dataclass
class Choice:
    """One row of the table: a form that was tried or skipped.

    Attributes:
        engine, dtype: name and number type of the form; dtype "" is the model's own.
        error: largest error against the given model, relative to its channel or group. None if the form was not run.
            Of a form in int8, its loss on the calibration data.
        tolerance: largest error that is allowed there.
        prepare_s: seconds of preparation and verification.
        timing: times interleaved with all other correct forms. None if the form was not timed.
        ratio: the given model's median over this one's: above 1 is faster.
        confirmed: the same ratio in the final, taken round by round. None for forms outside the final.
        note: why the form was chosen or not.
    """

    engine: str
    dtype: str = ""
    error: float | None = None
    tolerance: float | None = None
    prepare_s: float | None = None
    timing: Timing | None = None
    ratio: float | None = None
    confirmed: float | None = None
    chosen: bool = False
    note: str = ""

    def note_error(self, seen: Error) -> None:
        """Store the error that was seen. If it exceeds the tolerance, note why the form is not used."""
        self.error, self.tolerance = seen.relative, seen.allowed
        if not seen.passes:
            self.note = f"differs: {seen.problem or f'{seen.relative:.1e} of the output'} (allowed {seen.allowed:.1e})"

    @property
    def label(self) -> str:
        return f"{self.engine} {self.dtype}".strip()

    def to_dict(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "dtype": self.dtype,
            "error": self.error,
            "tolerance": self.tolerance,
            "prepare_s": self.prepare_s,
            "timing": self.timing.to_dict() if self.timing else None,
            "ratio": self.ratio,
            "confirmed": self.confirmed,
            "chosen": self.chosen,
            "note": self.note,
        }


@dataclass(frozen=True)
class Choices:
    """The rows, the device they were measured on, and the winner. Iterates over `Choice`."""

    rows: tuple[Choice, ...]
    device: str  # the line of `leanconv.measure.label`
    folds: int  # folds in the folded forms
    seconds: float
    blocks: Any = None  # the table of the fused engine's blocks if it was tried; printed below this one
    budget_s: float = 0.0
    missed: tuple[str, float] = ("", 0.0)  # the engines that the budget did not reach, and a budget that would
    int8: str = ""  # what the error of forms in int8 is

    @property
    def winner(self) -> Choice:
        return next(row for row in self.rows if row.chosen)

    @property
    def undecided(self) -> bool:
        """Whether the given model won for want of time alone: engines were not reached, or noise hid a faster one."""
        faster = (row for row in self.rows if max(row.ratio or 0, row.confirmed or 0) > 1 + TIE)
        return self.winner is self.rows[0] and (bool(self.missed[0]) or any(faster))

    def __iter__(self) -> Any:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, label: str) -> Choice:
        """Return the row of an engine by its label, for example `"openvino"` or `"openvino bfloat16"`."""
        return next(row for row in self.rows if row.label == label)

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "folds": self.folds,
            "seconds": self.seconds,
            "chosen": self.winner.label,
            "budget_s": self.budget_s,
            "missed": self.missed[0],
            "enough_s": self.missed[1],
            "int8": self.int8,
            "choices": [row.to_dict() for row in self.rows],
            "blocks": [] if self.blocks is None else self.blocks.to_dict(),
        }

    def __str__(self) -> str:
        columns = ["engine", "error", "allowed", "prepared s", "ms", "IQR", "faster by", "", "why"]
        cells: Sequence[Sequence[str]] = [
            [
                row.label,
                number(row.error, ".1e"),
                number(row.tolerance, ".1e"),
                number(row.prepare_s, ".1f"),
                number(row.timing.median_ms if row.timing else None, ".3g"),
                number(row.timing.iqr_ms if row.timing else None, ".2g"),
                number(row.ratio, ".2f"),
                "<-" if row.chosen else "",
                row.note,
            ]
            for row in self.rows
        ]
        note = (
            f"{self.device}; {self.folds} folds; {self.seconds:.0f} s. The fastest form with the same results wins "
            f"if it is faster than the given model beyond noise. Within {TIE:.0%} of it, the first in the table wins."
        )
        names, enough = self.missed
        short = f"budget_s={self.budget_s:g} was too small for {names}; budget_s={enough:g} would do\n" if names else ""
        text = short + table(columns, cells, note=[note, self.int8])
        return text if self.blocks is None else f"{text}\n\n{self.blocks}"
