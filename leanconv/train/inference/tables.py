"""defects.csv and verdicts.csv: all defects, and whether each image passes, of every prediction into one folder.

Both are UTF-8 with a headline. An image that is predicted again gets new rows; those of other images stay.
"""

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.files import read_bytes, write_atomic
from leanconv.text import one_line
from leanconv.train.inference.defects import Prediction
from leanconv.train.inference.written import alone

DEFECTS, VERDICTS = "defects.csv", "verdicts.csv"
HEADS = {
    DEFECTS: ["file", "class", "x0", "y0", "x1", "y1", "area_px", "score"],
    VERDICTS: ["file", "verdict", "defects", "area_px", "why"],
}
# What begins a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@")


def check_tables(out: Path, overwrite: bool) -> None:
    """Raise BadInput rather than overwrite a file that is no such table; of a folder in its place, in any case."""
    for name in HEADS:
        _rows(out / name, overwrite)


def update_tables(out: Path, found: Iterable[Prediction], overwrite: bool = False) -> None:
    """Put the rows of these images in place of their earlier ones. Raises BadInput as `check_tables` does."""
    found = list(found)
    done = {_key(_name(each)) for each in found}
    with alone(out / DEFECTS):
        for name, head in HEADS.items():
            kept = [row for row in _rows(out / name, overwrite) if _key(row[0]) not in done]
            _write(out / name, [head, *kept, *(row for each in found for row in _rows_of(name, each))])


def _rows_of(table: str, found: Prediction) -> list[list[str]]:
    file = _name(found)
    if table == VERDICTS:
        return [[file, found.verdict, str(len(found.defects)), str(found.area_px), one_line(found.why)]]
    return [
        [file, one_line(defect.class_name), *map(str, defect.box), str(defect.area_px), f"{defect.score:.4f}"]
        for defect in found.defects
    ]


def _name(found: Prediction) -> str:
    """The image's path as text that every program reads: odd bytes and line ends are escaped.

    A name like `=1+1.png` would be a formula to a spreadsheet: `./=1+1.png` is the same file, and none.
    """
    name = one_line(found.image, most=10_000)
    return os.path.join(os.curdir, name) if name.startswith(_FORMULA) else name


def _key(name: str) -> str:
    return os.path.abspath(name)


def _rows(path: Path, overwrite: bool) -> list[list[str]]:
    """The rows of an earlier table; none where there is no file, or a strange one that may be overwritten."""
    if os.path.isdir(path):
        raise BadInput(f"{path} is a folder, and the table of that name goes there: give another --out")
    if not os.path.lexists(path):
        return []
    try:
        rows = list(csv.reader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error, BadInput):
        rows = []
    head = HEADS[path.name]
    if rows[:1] == [head] and all(len(row) == len(head) for row in rows):
        return rows[1:]
    if overwrite:
        return []
    raise BadInput(f"{path} was not made by predict: give another --out, or say --overwrite")


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_atomic(path, text.getvalue())
