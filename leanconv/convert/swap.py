"""Swap and Plan: what would become what, printed, saved and read back."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, overload

from leanconv.convert import reasons
from leanconv.convert.advice import advice
from leanconv.cost import Cost
from leanconv.errors import BadInput
from leanconv.files import read_json, write_json
from leanconv.registry import parse
from leanconv.spec import ConvSpec
from leanconv.table import si, table
from leanconv.text import one_line

_FORMAT = "leanconv plan 1"


@dataclass(frozen=True)
class Swap:
    """One convolution of the plan.

    Attributes:
        name: its name in the model (the first, where it has several).
        to: the operator string it becomes; None where it stays.
        before, after: its cost on the planned input, all calls together; None where it is not counted (not called,
            not a `Conv2d`, or, for `after`, not swapped).
        reason: why it stays, one of `leanconv.convert.reasons`; where it is swapped, empty or what `search` says of it.
        spec: its sizes and the input of its first call; None where it has none.
        calls: how often the model calls it.
    """

    name: str
    to: str | None
    before: Cost | None
    after: Cost | None
    reason: str
    spec: ConvSpec | None = None
    calls: int = 0

    def __str__(self) -> str:
        if self.to is None:
            return one_line(f"keep {self.name}: {self.reason}")
        costs = ""
        if self.before is not None and self.after is not None:
            costs = f", {si(self.before.macs)} -> {si(self.after.macs)} MACs"
        return one_line(f"swap {self.name}: {self.to}{costs}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Plan(Sequence[Swap]):
    """A list of `Swap`, in the order in which the model runs them. Prints as a table; filter it like a list."""

    heading: ClassVar[str] = "stays because"  # of the reasons' column

    def __init__(self, swaps: Iterable[Swap]) -> None:
        self._swaps = tuple(swaps)
        for name, times in Counter(swap.name for swap in self._swaps).items():
            if times > 1:
                raise BadInput(f"the plan names {name!r} {times} times; each layer may stand in it once")

    @overload
    def __getitem__(self, index: int) -> Swap: ...
    @overload
    def __getitem__(self, index: slice) -> "Plan": ...
    def __getitem__(self, index: int | slice) -> "Swap | Plan":
        return Plan(self._swaps[index]) if isinstance(index, slice) else self._swaps[index]

    def __len__(self) -> int:
        return len(self._swaps)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self._swaps == other._swaps

    def __hash__(self) -> int:
        return hash(self._swaps)

    @property
    def swapped(self) -> list[Swap]:
        """The layers that change."""
        return [swap for swap in self if swap.to is not None]

    @property
    def kept(self) -> list[Swap]:
        """The convolutions that stay, each with its reason."""
        return [swap for swap in self if swap.to is None]

    @property
    def before(self) -> Cost:
        """The cost of the counted convolutions as they are."""
        return sum((swap.before for swap in self if swap.before), Cost(0, 0, 0, 0, 0))

    @property
    def after(self) -> Cost:
        """The cost of the same convolutions once the plan is applied."""
        return sum(((swap.after or swap.before) for swap in self if swap.before), Cost(0, 0, 0, 0, 0))

    def reasons(self) -> dict[str, int]:
        """How many convolutions stay for which reason, the commonest first."""
        return dict(Counter(reasons.category(swap.reason) for swap in self.kept).most_common())

    def __str__(self) -> str:
        if not self:
            return "the model has no convolution"
        rows = [
            [
                swap.name,
                _sizes(swap),
                swap.to or "-",
                *_pair(swap, lambda cost: cost.macs),
                *_pair(swap, lambda cost: cost.params + cost.norm_params),
                swap.reason,
            ]
            for swap in self
        ]
        columns = ["layer", "sizes", "to", "MACs", "after", "params", "after", self.heading]
        return table(columns, rows, note=self._note())

    def __repr__(self) -> str:
        return f"Plan({len(self.swapped)} swapped, {len(self.kept)} kept)"

    def _note(self) -> list[str]:
        before, after = self.before, self.after
        lines = [
            f"{len(self.swapped)} of {len(self)} convolutions change; all counted convolutions together: "
            f"{si(before.macs)} -> {si(after.macs)} MACs, "
            f"{si(before.params + before.norm_params)} -> {si(after.params + after.norm_params)} params"
        ]
        if not self.swapped:
            other = (reasons.of_kind(swap.spec.kind) for swap in self if swap.spec)
            wanted = {*other, reasons.UNSUPPORTED, reasons.NOT_MEANT}
            lines.extend(advice(s.spec for s in self if s.spec and reasons.category(s.reason) in wanted))
        if self.kept:
            lines.append("kept: " + ", ".join(f"{count} {reason}" for reason, count in self.reasons().items()))
            lines.extend(f"  {reason}: {reasons.MEANING[reason]}" for reason in self.reasons())
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain numbers and strings: what `save` writes."""
        return {
            "format": _FORMAT,
            "layers": [swap.to_dict() for swap in self],
            "total": {"before": asdict(self.before), "after": asdict(self.after)},
            "kept": self.reasons(),
        }

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, whole or not at all."""
        return write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a saved plan. Raises BadInput, with the entry at fault, where the file is not one."""
        value = read_json(path)
        if not isinstance(value, dict) or value.get("format") != _FORMAT or not isinstance(value.get("layers"), list):
            raise BadInput(f"{path}: not a plan of this version ({_FORMAT!r}); write one with Plan.save")
        swaps = []
        for index, entry in enumerate(value["layers"]):
            try:
                swaps.append(_swap(entry))
            except (TypeError, ValueError, KeyError) as error:
                raise BadInput(f"{path}: layer {index}: {error}") from error
        return cls(swaps)


def _sizes(swap: Swap) -> str:
    """The sizes at the first call, and how many calls the costs are of."""
    text = str(swap.spec or "-")
    return f"{text}, {swap.calls} calls" if swap.calls > 1 else text


def _pair(swap: Swap, number: Callable[[Cost], int]) -> tuple[str, str]:
    return tuple(si(number(cost)) if cost else "-" for cost in (swap.before, swap.after))  # type: ignore[return-value]


def _swap(entry: Any) -> Swap:
    """One entry of a plan file, checked: a file may be damaged or written by somebody else."""
    if not isinstance(entry, dict) or set(entry) != {field.name for field in fields(Swap)}:
        raise BadInput(f"needs exactly the keys {', '.join(field.name for field in fields(Swap))}")
    name, to, reason, calls, spec = (entry[key] for key in ("name", "to", "reason", "calls", "spec"))
    if not isinstance(name, str) or not isinstance(reason, str) or not _is_count(calls):
        raise BadInput("name and reason must be text, calls a count")
    if to is not None:
        parse(to if isinstance(to, str) else repr(to))
    elif reasons.category(reason) not in reasons.MEANING:
        raise BadInput(f"unknown reason {reason[:80]!r}; known: {', '.join(reasons.MEANING)}")
    return Swap(name, to, _cost(entry["before"]), _cost(entry["after"]), reason, _spec(spec), calls)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _cost(value: Any) -> Cost | None:
    if value is None:
        return None
    keys = {field.name for field in fields(Cost)}
    if not isinstance(value, dict) or set(value) != keys or not all(map(_is_count, value.values())):
        raise BadInput(f"a cost has exactly the counts {', '.join(sorted(keys))}")
    return Cost(**value)


def _spec(value: Any) -> ConvSpec | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(ConvSpec)}:
        raise BadInput("a spec has exactly the fields of ConvSpec")
    lists = [item for each in value.values() for item in (each if isinstance(each, list) else [each])]
    if not all(_is_count(item) or isinstance(item, str | bool) for item in lists):
        raise BadInput("a spec holds whole numbers")
    v = dict(value)
    return ConvSpec.of(
        v.pop("c"), v.pop("o"), v.pop("kernel"), v.pop("stride"), v.pop("padding"), v.pop("dilation"), **v
    )
