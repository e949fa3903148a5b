"""Entry: compare one printed figure of a paper with ours, from a row of the tables and our counts."""

from dataclasses import dataclass
from typing import Any

from leanconv.errors import BadInput
from leanconv.papers.figures import Figures, formulas
from leanconv.papers.printed import COLUMNS, PrintedRow


@dataclass(frozen=True)
class Entry:
    """One figure of one row, the paper's and ours.

    Attributes:
        error: ours / paper - 1, or None without a comparison. For percentages the difference, 0.005 for half a point.
        how: "counted" on real modules, "measured" for frame rates, or "formula" if no real layer has the figure.
    """

    paper: str
    table: str
    row: str
    column: str
    convention: str
    input: str
    paper_value: float
    ours: float
    error: float | None
    ok: bool | None
    how: str
    reason: str

    def cells(self) -> list[str]:
        is_percentage = self.column.endswith("%")
        error = "-" if self.error is None else f"{100 * self.error:+.3f} {'points' if is_percentage else '%'}"
        ok = {True: "yes", False: "NO", None: "-"}[self.ok]
        exact = is_percentage or isinstance(self.paper_value, float)
        paper, ours = (f"{value:.2f}" if exact else f"{value:,}" for value in (self.paper_value, self.ours))
        return [self.row, self.column, paper, ours, error, ok]


def entries_of(
    row: PrintedRow, paper: Any, model_id: str, size: tuple[int, int] | None, figures: Figures, *, name: str = ""
) -> list[Entry]:
    """Return the entries of one row.

    `paper`: its module. `size`: H, W that replace the table's. `name`: the name of an alternative reading.
    """
    shape = (row.input[0], *size) if size else row.input

    def ours(column: str, model_id: str) -> tuple[Any, str, str]:
        convention = (column == "params" and row.params_convention) or row.convention
        mixed = row.convention in formulas(paper) and convention != row.convention
        found, how = figures.of(paper, model_id, f"{row.convention}:{convention}" if mixed else convention, shape)
        value = getattr(found, column, None)
        if value is None:
            raise BadInput(f"{row.slug}: convention {convention} counts no {COLUMNS[column]}")
        return value, how, convention

    entries = [_entry(row, paper, column, *ours(column, model_id), shape, name) for column in row.values]
    for column in row.reduced:
        less, how, convention = ours(column, model_id)
        pct = 100 * (1 - less / ours(column, paper.BASELINES[row.model_id, column])[0])
        entries.append(_reduction(row, paper, column, pct, how, convention, shape, name))
    return entries


def _why(row: PrintedRow, paper: Any, column: str, convention: str) -> str:
    """Return the reason for a difference: the paper module's own, the row's note, or the size of the error."""
    reasons = getattr(paper, "REASONS", {})
    known: str = reasons.get((row.model_id, column, convention), row.note)
    return known or f"off by more than {100 * row.tolerance:g} %"


def _entry(
    row: PrintedRow, paper: Any, column: str, ours: int, how: str, convention: str, shape: tuple[int, ...], name: str
) -> Entry:
    printed = row.values[column]
    error: float | None = ours / printed - 1
    ok: bool | None = row.agrees(column, ours)
    reason = ""
    if shape != row.input and column != "params":
        error, ok, reason = None, None, _elsewhere(row, shape)
    elif not ok:
        reason = _why(row, paper, column, convention)
    elif abs(ours / printed - 1) > row.tolerance:
        reason = f"{COLUMNS[column]} prints as the paper's {row.printed[column]}"
    return _build(row, name, COLUMNS[column], convention, shape, (printed, ours, error, ok, how, reason))


def _reduction(
    row: PrintedRow, paper: Any, column: str, ours: float, how: str, convention: str, shape: tuple[int, ...], name: str
) -> Entry:
    printed, reason = row.reduced[column], ""
    error: float | None = (ours - printed) / 100
    ok: bool | None = abs(ours - printed) / 100 <= row.tolerance
    if shape != row.input and column != "params":
        error, ok, reason = None, None, _elsewhere(row, shape)
    elif not ok:
        reason = _why(row, paper, column, convention)
    title = f"{COLUMNS[column]} less %"
    return _build(row, name, title, convention, shape, (printed, ours, error, ok, how, reason))


def _elsewhere(row: PrintedRow, shape: tuple[int, ...]) -> str:
    return f"counted on {shape[1]}x{shape[2]}, printed for {row.input[1]}x{row.input[2]}"


def _build(
    row: PrintedRow, name: str, column: str, convention: str, shape: tuple[int, ...], figures: tuple[Any, ...]
) -> Entry:
    paper, table_name = row.slug.split("/")
    title, where = f"{row.row} [{name}]" if name else row.row, "x".join(map(str, shape))
    return Entry(paper, table_name, title, column, convention, where, *figures)
