"""Budgets: `"latency<=50%"`, `"macs<=40M, params<=80%"`, `"faster=2x"`, or the same as a mapping."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from leanconv.errors import BadInput
from leanconv.registry import nearest
from leanconv.table import si

# Quantity -> the unit of its values.
QUANTITIES = {"latency": "ms", "macs": "", "params": "", "bytes": "", "cycles": ""}
_SYNTAX = (
    'write QUANTITY<=VALUE, such as "latency<=50%" (of the dense network), "latency<=12ms", "macs<=40M" or '
    f'"faster=2x"; several joined by commas; quantities: {", ".join(QUANTITIES)}'
)
_VALUE = re.compile(r"(?P<number>\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+)\s*(?P<unit>%|us|ms|s|k|M|G|T)?B?")
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_COUNTS = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Limit:
    """The most of one quantity: a share of the dense network's (`share`), or ms, MACs, ... (`absolute`)."""

    quantity: str
    share: float | None = None
    absolute: float | None = None

    def of(self, dense: float) -> float:
        """The limit in the quantity's own unit; `dense`: the dense network's value."""
        return float(self.absolute) if self.absolute is not None else float(self.share or 0.0) * dense

    def __str__(self) -> str:
        if self.share is not None:
            return f"{self.quantity}<={100 * self.share:.4g}%"
        return f"{self.quantity}<={amount(self.quantity, float(self.absolute or 0.0))}"


@dataclass(frozen=True)
class Budget:
    """One limit or several, each of another quantity; a plan meets all of them."""

    limits: tuple[Limit, ...]

    @classmethod
    def of(cls, given: "str | Mapping[str, Any] | Budget") -> "Budget":
        """Parse a budget. Raises BadInput, with the syntax, for anything that is none."""
        if isinstance(given, Budget):
            return given
        if isinstance(given, str):
            limits = [_part(part) for part in given.split(",") if part.strip()]
        elif isinstance(given, Mapping):
            limits = [_limit(str(key), "" if value is None else str(value)) for key, value in given.items()]
        else:
            raise BadInput(f"budget {given!r}: {_SYNTAX}")
        if not limits:
            raise BadInput(f"budget {given!r} limits nothing: {_SYNTAX}")
        for limit in limits:
            if sum(limit.quantity == other.quantity for other in limits) > 1:
                raise BadInput(f"budget {given!r} limits {limit.quantity} twice; give the tighter limit alone")
        return cls(tuple(limits))

    @property
    def quantities(self) -> tuple[str, ...]:
        return tuple(limit.quantity for limit in self.limits)

    def scaled(self, factors: Mapping[str, float]) -> Self:
        """The budget with the limits of some quantities times a factor."""
        return type(self)(
            tuple(
                Limit(
                    each.quantity,
                    None if each.share is None else each.share * factors.get(each.quantity, 1.0),
                    None if each.absolute is None else each.absolute * factors.get(each.quantity, 1.0),
                )
                for each in self.limits
            )
        )

    def __str__(self) -> str:
        return ", ".join(map(str, self.limits))


def amount(quantity: str, value: float) -> str:
    """A value with its unit: `12.3ms`, `40.1M`."""
    return f"{value:.4g}ms" if quantity == "latency" else si(value)


def _part(text: str) -> Limit:
    found = re.fullmatch(r"\s*(?P<key>[A-Za-z_]+)\s*(?P<sign><=|=|<|:)\s*(?P<value>.*?)\s*", text)
    if found is None or found["sign"] != ("=" if found["key"] == "faster" else "<="):
        raise BadInput(f"budget {text.strip()!r}: {_SYNTAX}")
    return _limit(found["key"], found["value"])


def _limit(key: str, value: str) -> Limit:
    if key == "faster":
        times = re.fullmatch(r"(\d+(\.\d*)?|\.\d+)\s*x?", value.strip())
        if times is None or not 1 <= float(times[1]) < 1e6:
            raise BadInput(f"budget faster={value}: how many times faster, at least 1, such as faster=2x")
        return Limit("latency", share=1 / float(times[1]))
    if key not in QUANTITIES:
        raise BadInput(f"budget: unknown quantity {key!r}{nearest(key, [*QUANTITIES, 'faster'])}; {_SYNTAX}")
    found = _VALUE.fullmatch(value.strip())
    number = float(found["number"]) if found else math.nan
    if found is None or not math.isfinite(number) or number <= 0:
        raise BadInput(f"budget {key}<={value}: no positive value; {_SYNTAX}")
    return _of_unit(key, value, number, found["unit"])


def _of_unit(key: str, value: str, number: float, unit: str | None) -> Limit:
    if unit == "%" or (unit is None and number <= 1):
        share = number / 100 if unit == "%" else number
        if share > 1:
            raise BadInput(f"budget {key}<={value}: a share of the dense network's {key} is at most 100%")
        return Limit(key, share=share)
    units: dict[str | None, float] = {**_MS} if key == "latency" else {None: 1.0, **_COUNTS}
    if unit not in units:
        known = ", ".join(["%", *map(str, filter(None, units))])
        raise BadInput(f"budget {key}<={value}: {key} takes one of the units {known}; {_SYNTAX}")
    return Limit(key, absolute=number * units[unit])
