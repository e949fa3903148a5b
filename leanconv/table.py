"""Print tables and numbers with units, in one style for the whole project."""

import io
import shutil
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from leanconv.text import one_line


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", note: str | Sequence[str] = ""
) -> str:
    """Format a table as plain text, numbers right-aligned and words left-aligned. The lines of `note` follow below.

    Each cell stays one line, whatever names it contains.
    """
    listed = [[one_line(cell) for cell in row] for row in rows]
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in listed) and bool(listed)
        view.add_column(Text(one_line(column)), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        view.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    # Piped output has no width. 160 columns hold all our tables without folding a number.
    width = shutil.get_terminal_size((160, 24)).columns
    console = Console(file=out, width=max(width, 60), color_system=None, highlight=False, emoji=False)
    if title:
        console.print(Text(one_line(title)))
    console.print(view)
    for line in [note] if isinstance(note, str) else note:
        if line:
            console.print(Text(one_line(line)))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-~").lstrip()[:1].isdigit()


def si(value: float) -> str:
    """Format `231_211_008` as `231.2M`, as usual for MACs and parameters (G = 10⁹)."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"


def number(value: float | None, form: str) -> str:
    """Format a number as `form` says; "-" where there is none."""
    return "-" if value is None else format(value, form)
