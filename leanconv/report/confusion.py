"""Draw a confusion matrix: one square per pair of classes, with the share of the row as opacity."""

from collections.abc import Sequence
from html import escape

# Counts and class names are drawn for up to this many classes. With more, only the tooltips show them.
NAMED = 20
_CELL = 34


def matrix(name: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Draw counts (rows = truth, columns = prediction) as one inline `<svg>` with escaped texts."""
    named = len(classes) <= NAMED
    room = 18 + 6.5 * min(15, max(map(len, classes), default=0))  # for the longest name
    cell, margin = (_CELL, room) if named else (max(2.0, 640 / len(classes)), 8)
    side = margin + cell * len(classes)
    total, hits = sum(map(sum, counts)), sum(row[k] for k, row in enumerate(counts))
    label = f"Confusion matrix of {name}: {hits} of {total} images on the diagonal"
    parts = [
        f'<svg class="plot{" matrix" * named}" role="img" aria-label="{escape(label)}" viewBox="0 0 {side:g} {side:g}" '
        'font-size="11" fill="var(--ink)">'
    ]
    if named:
        parts += [_names(each, place, cell, margin) for place, each in enumerate(classes)]
    for k, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                parts.append(_cell(classes[k], classes[j], k, j, count, count / sum(row), cell, margin, named))
    span = f"{cell * len(classes):g}"
    frame = f'<rect x="{margin:g}" y="{margin:g}" width="{span}" height="{span}" fill="none" stroke="var(--grid)"/>'
    return "".join([*parts, frame, "</svg>"])


def _names(text: str, place: int, cell: float, margin: float) -> str:
    short = escape(text if len(text) <= 15 else text[:14] + "\u2026")
    middle = margin + (place + 0.5) * cell
    return (
        f'<text x="{margin - 6:g}" y="{middle + 4:g}" text-anchor="end">{short}</text>'
        f'<text transform="translate({middle + 4:g} {margin - 6:g}) rotate(-60)">{short}</text>'
    )


def _cell(
    truth: str, guess: str, k: int, j: int, count: int, share: float, cell: float, margin: float, named: bool
) -> str:
    x, y = margin + j * cell, margin + k * cell
    colour = "var(--s0)" if k == j else "var(--s1)"
    tip = f"{truth} taken for {guess}: {count} ({100 * share:.1f} %)" if k != j else f"{truth}: {count} right"
    square = (
        f'<rect class="cell" data-tip="{escape(tip)}" x="{x:g}" y="{y:g}" width="{cell:g}" height="{cell:g}" '
        f'fill="{colour}" fill-opacity="{max(0.04, 0.75 * share):.2f}"/>'
    )
    if not named:
        return square
    middle = f'x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}"'
    return square + f'<text {middle} text-anchor="middle" pointer-events="none">{count}</text>'
