"""FoundPlan: the plan of a search, with what was predicted and what was measured beside it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from leanconv.convert import Plan, Swap
from leanconv.planner.budget import amount
from leanconv.table import table


@dataclass
class Trial:
    """One whole plan that was predicted and measured.

    Attributes:
        name: "plan 1", or "hetconv(part=4) everywhere".
        choices: layer -> operator; layers that stay dense are left out.
        predicted, measured: quantity -> value (latency in ms). Counts are exact: both are the same.
        share: of the dense network's latency, as measured; low, high: its bounds (two standard errors).
        harm_sum: the sum of the layers' own harms. harm: of the whole plan.
    """

    name: str
    choices: dict[str, str]
    predicted: dict[str, float]
    measured: dict[str, float]
    harm_sum: float
    harm: float
    share: float | None = None
    low: float | None = None
    high: float | None = None
    meets: bool = False
    chosen: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Point:
    """One budget of the front: the predicted cost as a share of the dense network's, and the layers' harms added up."""

    share: float
    harm: float
    swapped: int


@dataclass
class Report:
    """What a search measured.

    Attributes:
        budget: as text. dense: quantity -> the dense network's value.
        how_latency, how_harm: what was measured, in words. init: how the weights of the trials were made.
        trials: the whole plans that were measured, the uniform ones among them.
        front: predicted, for budgets from the least cost to the dense network's; of the first limited quantity.
        harms: layer -> operator -> harm of that swap alone; costs: quantity -> layer -> choice -> value.
    """

    budget: str
    dense: dict[str, float]
    how_harm: str
    init: str
    images: int
    how_latency: str = ""
    trials: list[Trial] = field(default_factory=list)
    front: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    harms: dict[str, dict[str, float]] = field(default_factory=dict)
    costs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)

    @property
    def chosen(self) -> Trial:
        """The plan that was returned."""
        return next(trial for trial in self.trials if trial.chosen)

    def to_dict(self) -> dict[str, Any]:
        return _finite(asdict(self))  # type: ignore[no-any-return]

    def __str__(self) -> str:
        head = ["plan", "swapped"]
        for quantity in self.dense:
            head += [f"{quantity}, predicted", "measured", "difference", "of dense"] if quantity == "latency" else [
                quantity, "of dense",
            ]  # fmt: skip
        head += ["harm, added up", "measured", "in budget", ""]
        rows = [self._dense_row(), *(self._row(trial) for trial in self.trials)]
        how = f"budget {self.budget}; harm: {self.how_harm}, on {self.images} images, after init={self.init!r}"
        notes = [f"{how}, not refined as a whole" if self.init == "fit" else how]
        if self.how_latency:
            notes.append(f"latency: layers {self.how_latency}; whole plans in turns with the dense network")
        notes.append("harm: 0 is the dense network's, less is better; it ranks plans, and is no loss of accuracy")
        whole = [quantity for quantity in self.dense if quantity in ("macs", "params")]
        if whole:
            named = " and ".join(whole)
            notes.append(f"{named} here: of the whole network; in the plan: of its counted convolutions alone")
        if any(trial.meets and not math.isfinite(trial.harm_sum) for trial in self.trials):
            notes.append("a uniform plan without a sum swaps a layer that saves nothing: it is there to compare with")
        return table(head, rows, note=[*notes, *self.notes])

    def _dense_row(self) -> list[str]:
        cells = ["dense", "0"]
        for quantity, value in self.dense.items():
            text = amount(quantity, value)
            cells += ["-", text, "-", "100.0%"] if quantity == "latency" else [text, "100.0%"]
        return [*cells, "0", "0", "", ""]

    def _row(self, trial: Trial) -> list[str]:
        cells = [trial.name, str(len(trial.choices))]
        for quantity, dense in self.dense.items():
            guess, seen = trial.predicted[quantity], trial.measured.get(quantity)
            if quantity != "latency":
                cells += [amount(quantity, guess), f"{guess / dense:.1%}"]
                continue
            cells.append(amount(quantity, guess))
            if seen is None:
                cells += ["-", "-", f"~{guess / dense:.1%}"]
            else:
                cells += [amount(quantity, seen), f"{(guess - seen) / seen:+.1%}", f"{seen / dense:.1%}"]
        return [
            *cells, _known(trial.harm_sum), _known(trial.harm), "yes" if trial.meets else "no",
            "chosen" if trial.chosen else "",
        ]  # fmt: skip


def _known(harm: float) -> str:
    """A harm; "-" where it was not measured (a uniform plan outside the budget) or is no number."""
    return f"{harm:.3g}" if math.isfinite(harm) else "-"


class FoundPlan(Plan):
    """A `Plan` for `apply_`; a swapped layer's `reason` says what it saves. `search`: what was measured for it."""

    heading = "because"

    def __init__(self, swaps: Iterable[Swap], search: Report) -> None:
        super().__init__(swaps)
        self.search = search

    def __str__(self) -> str:
        return f"{super().__str__()}\n\n{self.search}"

    def _note(self) -> list[str]:
        """Without the advice of a plan that swaps nothing: this one weighed candidates and needed none."""
        total, *others = super()._note()
        if self.swapped:
            return [total, *others]
        kept = next((place for place, line in enumerate(others) if line.startswith("kept: ")), len(others))
        return [total, "no swap is needed: the dense network is within the budget", *others[kept:]]

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"search": self.search.to_dict()}


def _finite(value: Any) -> Any:
    """The same with None for infinite numbers, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
