"""Pieces of Markdown."""

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], right: str = "") -> str:
    """A pipe table. `right`: a letter per column, "r" where numbers stand right."""
    marks = [" ---: " if index < len(right) and right[index] == "r" else " --- " for index in range(len(columns))]
    lines = [f"| {' | '.join(columns)} |", f"|{'|'.join(marks)}|"]
    lines += [f"| {' | '.join(escaped(str(cell)) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def escaped(cell: str) -> str:
    """The text with nothing in it that would end a table's cell."""
    return cell.replace("|", "\\|").replace("\n", " ")


def fence(language: str, text: str) -> str:
    """A code block."""
    return f"```{language}\n{text.rstrip()}\n```"


def page(*blocks: str) -> str:
    """Blocks with an empty line between, empty ones left out."""
    return "\n\n".join(block for block in blocks if block) + "\n"
