"""The papers' printed tables, shipped with the package, and the test whether our count agrees with a figure."""

import functools
import json
import re
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from importlib import resources
from typing import Any

COLUMNS = {"params": "Params", "flops": "Flops", "madd": "MAdd"}
# Column of a percentage below the table's dense network -> the column it is computed from.
REDUCED = {"flops_reduced_pct": "flops", "params_reduced_pct": "params"}
_UNITS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12}
_FIGURE = re.compile(r"(?P<digits>\d+(?:\.\d+)?)(?P<unit>[kMGT]?)")


@dataclass(frozen=True)
class PrintedRow:
    """One row of a paper's table.

    Attributes:
        slug: paper/table, the argument of `leanconv reproduce`.
        paper, table: the paper's own names.
        row: the row's printed name.
        model_id: our name of the row's network.
        input: `(C, H, W)`.
        convention: a name of `leanconv.measure.counting.conventions`.
        values: column (params, flops, madd) -> figure as a number.
        printed: column -> figure in the paper's spelling.
        tolerance: relative tolerance.
        expected: whether the real network reproduces the row.
        note: the reason if it does not.
        fps: the printed frame rate, or None.
        reduced: column -> printed percentage below the dense network.
        params_convention: the convention of the params column if it differs, else "".
    """

    slug: str
    paper: str
    table: str
    row: str
    model_id: str
    input: tuple[int, int, int]
    convention: str
    values: dict[str, int]
    printed: dict[str, str]
    tolerance: float
    expected: bool
    note: str = ""
    fps: float | None = None
    reduced: dict[str, float] = field(default_factory=dict)
    params_convention: str = ""

    def agrees(self, column: str, ours: int) -> bool:
        """Whether our figure is within the tolerance, or rounds to the printed one."""
        paper = self.values[column]
        return abs(ours / paper - 1) <= self.tolerance or prints_as(ours, self.printed[column])


def prints_as(ours: int, printed: str) -> bool:
    """Whether `ours`, rounded or truncated to the unit and digits of `printed`, equals `printed`.

    >>> prints_as(3_648_056_320, "3.6G"), prints_as(3_660_000_000, "3.6G"), prints_as(3_700_000_000, "3.6G")
    (True, True, False)
    """
    match = _FIGURE.fullmatch(printed)
    if match is None:
        raise ValueError(f"{printed!r} is no figure like 7.76M")
    paper = Decimal(match["digits"])
    value = Decimal(ours).scaleb(-_UNITS[match["unit"]])
    return any(value.quantize(paper, rounding) == paper for rounding in (ROUND_HALF_UP, ROUND_DOWN))


def as_printed(value: int) -> str:
    """Format a figure with the digits that it surely had in print: two, or all but the trailing zeros.

    >>> as_printed(3_600_000_000), as_printed(313_740_000), as_printed(589_000_000), as_printed(2_000_000)
    ('3.6G', '313.74M', '589M', '2.0M')
    """
    unit = next(u for u in reversed(_UNITS) if value >= 10 ** _UNITS[u])
    text = format((Decimal(value) / 10 ** _UNITS[unit]).normalize(), "f")
    return (text if len(text.replace(".", "")) > 1 else f"{text}.0") + unit


@functools.cache
def printed_rows() -> tuple[PrintedRow, ...]:
    """Return all rows in the papers' order."""
    text = resources.files("leanconv.papers").joinpath("tables.json").read_text(encoding="utf-8")
    return tuple(_row(entry) for entry in json.loads(text)["rows"])


def slugs() -> list[str]:
    """Return the known tables as PAPER/TABLE."""
    return list(dict.fromkeys(row.slug for row in printed_rows()))


def _row(entry: dict[str, Any]) -> PrintedRow:
    values = {column: entry[column] for column in COLUMNS if entry[column] is not None}
    printed = {column: as_printed(value) for column, value in values.items()} | entry.get("printed", {})
    c, h, w = (int(size) for size in entry["input_size"].split("x"))
    return PrintedRow(
        entry["slug"],
        entry["paper"],
        entry["table"],
        entry["row"],
        entry["model_definition_id"],
        (c, h, w),
        entry["convention"],
        values,
        printed,
        entry["tolerance"],
        entry["expected_reproduced"],
        entry["note"],
        entry.get("fps"),
        {of: entry[column] for column, of in REDUCED.items() if column in entry},
        entry.get("params_convention", ""),
    )
