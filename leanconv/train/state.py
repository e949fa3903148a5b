"""The state of a run: a checkpoint's numbers beside its tensors, validated one by one at loading."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from leanconv.errors import BadInput
from leanconv.train.step.modes import EAGER, WORDS

# Columns of the history before and behind the task's scores.
BEFORE, BEHIND = ("epoch", "step", "loss"), ("lr", "seconds")
_MOST = 2**63


@dataclass
class State:
    """The state of a run.

    Attributes:
        step: steps done.
        loss_sum, loss_steps: of the running epoch; of each step the mean over all processes.
        seconds: of training, over all the times it was resumed.
        best, best_epoch: the largest validation score so far; -1 before the first.
        history: a row for each validated epoch.
        images: training images, whose order the steps follow; 0: not written down.
        schedule: of `leanconv.nn.Schedule`; empty: not written down.
        processes: that trained together; 0: not written down.
        mode: of its steps (`step/modes.py`); "": not decided yet.
        teacher: `digest` of the teacher's weights; "": it has none.
    """

    step: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    images: int = 0
    schedule: dict[str, Any] = field(default_factory=dict)
    processes: int = 0
    mode: str = ""
    teacher: str = ""

    @property
    def best_step(self) -> int:
        """The step of the best weights; 0 before the first."""
        rows = [row for row in self.history if row["epoch"] == self.best_epoch and self.best in row.values()]
        return rows[0]["step"] if rows else 0

    @classmethod
    def read(cls, stored: Any) -> Self:
        """Parse and validate a file's state. Raises BadInput naming the invalid entry."""
        if not isinstance(stored, dict):
            raise BadInput(f"the state is {_shown(stored)}, not an object")
        names = {each.name for each in dataclasses.fields(cls)}
        lacking = names - {"images", "schedule", "processes", "mode", "teacher"} - set(stored)
        if lacking:
            raise BadInput(f"the state lacks {', '.join(sorted(lacking))}")
        if strange := set(map(str, stored)) - names:
            raise BadInput(f"the state has {', '.join(sorted(strange))[:80]} besides")
        for key, (check, what) in _ENTRIES.items():
            if key in stored and not check(stored[key]):
                raise BadInput(f"{key}={_shown(stored[key])}: must be {what}")
        state = cls(**stored)
        _check_rows(state)
        return state

    def check(self, columns: Sequence[str], goal: str, *, per_epoch: int, keep: str) -> None:
        """Raise BadInput unless all entries agree, with these scores in the history, and the best one in `goal`.

        Args:
            per_epoch: steps of an epoch.
            keep: the recipe's rule for which epoch is the best.
        """
        validated = self.history[-1]["step"] if self.history else 0
        if self.loss_steps != self.step - validated:
            raise BadInput(f"loss_steps={self.loss_steps}: {self.step} steps are done, its history ends at {validated}")
        if (self.best_epoch > 0) != bool(self.history):
            raise BadInput(f"best_epoch={self.best_epoch}: its history has {len(self.history)} epochs")
        wanted = {*BEFORE, *columns, *BEHIND}
        for row in self.history:
            if set(row) != wanted:
                raise BadInput(f"history has the columns {', '.join(row)[:80]}, this task {', '.join(columns)}")
            if self.images and row["epoch"] != math.ceil(row["step"] / per_epoch):
                raise BadInput(f"history has epoch {row['epoch']} at step {row['step']}, of {per_epoch} steps an epoch")
        if self.history and not any((row["epoch"], row[goal]) == (self.best_epoch, self.best) for row in self.history):
            raise BadInput(f"best={self.best:g}, best_epoch={self.best_epoch}: its history has no such {goal}")
        if keep == "best" and any(row[goal] > self.best for row in self.history):
            raise BadInput(f"best={self.best:g}: its history has a larger {goal}")


def _check_rows(state: State) -> None:
    """Raise BadInput for a row of the history without a number, or later than the step."""
    before = 0
    for row in state.history:
        lacking = [key for key in BEFORE + BEHIND if key not in row]
        bad = lacking or [key for key, value in row.items() if not number(value)]
        bad = bad or [key for key in ("epoch", "step") if not _count(row[key])]
        if bad:
            raise BadInput(f"history has a row without a number for {bad[0][:80]}: {_shown(row)}")
        if not before < row["step"] <= state.step or row["epoch"] < 1:
            raise BadInput(f"history has step {row['step']} after {before}, of {state.step} steps: {_shown(row)}")
        before = row["step"]


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_mode(value: Any) -> bool:
    return value in ("", EAGER) or (type(value) is str and bool(value.split()) and set(value.split()) <= set(WORDS))


def number(value: Any) -> bool:
    """Whether it is a finite number that a float can hold."""
    return (type(value) is int and abs(value) < _MOST) or (type(value) is float and math.isfinite(value))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_COUNT = (_count, "a whole number of at least 0")
_ENTRIES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("step", "loss_steps", "best_epoch", "images", "processes"), _COUNT),
    "loss_sum": (number, "a finite number"),
    "seconds": (lambda value: number(value) and value >= 0, "a finite number of at least 0"),
    "best": (lambda value: number(value) and value >= -1, "a finite number of at least -1"),
    "history": (lambda value: type(value) is list and all(type(row) is dict for row in value), "a list of rows"),
    "schedule": (lambda value: isinstance(value, dict), "an object"),
    "teacher": (lambda value: type(value) is str and len(value) <= 64, "a short text"),
    "mode": (_is_mode, f"eager, or some of {', '.join(WORDS)}"),
}
