"""The one way this project prints a table, and the units it prints numbers in."""

import io
import shutil
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", note: str = "") -> str:
    """A table as plain text; numbers stand right, words left. `note` follows below it, wrapped."""
    listed = [[str(cell) for cell in row] for row in rows]
    view = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in listed) and bool(listed)
        view.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        view.add_row(*(Text(cell) for cell in row))
    out = io.StringIO()
    # Piped output has no width of its own: 160 columns hold every table we print without folding a number.
    width = shutil.get_terminal_size((160, 24)).columns
    console = Console(file=out, width=max(width, 60), color_system=None, highlight=False, emoji=False)
    if title:
        console.print(Text(title))
    console.print(view)
    if note:
        console.print(Text(note))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.lstrip("+-~").lstrip()[:1].isdigit()


def si(value: float) -> str:
    """`231_211_008` as `231.2M`: the field's way with MACs and parameters (G = 10⁹)."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{letter}"
    return f"{value:.4g}"
