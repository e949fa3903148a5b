"""The names of a data set's classes, the background first.

They may be said in several places. The first that has names gives them, and no other place may contradict:

1. the recipe's `classes`, or the classes of the run that looks at the data;
2. `classes=` of the data reference: names parted by commas, their number, or a file of names;
3. the names in `colors=` (colours.py);
4. classes.txt in the data's folder, a name a line; of another number of classes than said above it is left alone;
5. the folders of masks (masks/scratch/, masks/pit/), or the values of the column `label=`;
6. none: two classes, background and defect.

A file with one name, or folders and a column, name the defects alone: the background is put before them.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.files import read_bytes
from leanconv.text import one_line

FILE = "classes.txt"
BACKGROUND, DEFECT = "background", "defect"
MOST = 255

_LARGEST = 1 << 16  # bytes of a file of names
_MADE_UP = re.compile(rf"{BACKGROUND}|{DEFECT}|class\d+")


def class_names(
    ref: str,
    root: Path,
    *,
    given: Sequence[str] | int | None = None,
    option: str | None = None,
    colours: tuple[int, tuple[str, ...]] | None = None,
    apart: Sequence[str] = (),
) -> tuple[str, ...]:
    """The names of the classes of a data reference; see the head of this file.

    Args:
        given: the recipe's or the run's classes: names, or how many there are.
        option: the option `classes=` as it was written.
        colours: how many classes `colors=` has, and their names if it has any.
        apart: the classes without the background that have folders, or values of a column, of their own.
    Raises: BadInput where two places contradict, or there are not 2 to 255 different names.
    """
    said: list[tuple[str, int, tuple[str, ...]]] = []  # the place, how many, their names
    if given is not None:
        said.append(("the recipe or run", *_counted(given)))
    if option is not None:
        said.append(("classes=", *_counted(_option(option, root))))
    if colours is not None:
        said.append(("colors=", *colours))
    if os.path.isfile(root / FILE):
        in_file = read_class_file(root / FILE)
        if not said or said[0][1] == len(in_file):  # else the user knows better
            said.append((FILE, *_counted(in_file)))
    if apart:
        said.append(("its masks", len(apart) + 1, (BACKGROUND, *apart)))
    count = said[0][1] if said else 2
    for place, other, named in said:
        if other != count:
            shown = f" ({', '.join(named[:9])})" if named else ""
            raise BadInput(
                f"data {one_line(ref, most=200)!r}: {said[0][0]} says {count} classes, {place} {other}{shown}; "
                "say the same everywhere, the background first"
            )
    names = next((named for _, _, named in said if named), ()) or made_up(count)
    if not 2 <= count <= MOST or len(set(names)) != len(names) or not all(map(str.strip, names)):
        raise BadInput(
            f"data {one_line(ref, most=200)!r}: classes={one_line(','.join(names[:9]), most=200)}: 2 to {MOST} "
            "different names, the background first"
        )
    _same_names(ref, [(place, named) for place, _, named in said if place != "colors="])
    if apart and set(names[1:]) != set(apart):
        raise BadInput(
            f"data {one_line(ref, most=200)!r}: classes {', '.join(names[:9])}; its masks have {', '.join(apart[:9])}"
        )
    return names


def read_class_file(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line, the background first; of a single name, that of the defect. Raises BadInput."""
    try:
        lines = read_bytes(path, most=_LARGEST).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read as a list of names: {error}; save it as UTF-8") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise BadInput(f"{path}: holds no name; write one a line, the background first")
    return (BACKGROUND, *names) if len(names) == 1 else names


def _option(text: str, root: Path) -> Sequence[str] | int:
    if text.isdecimal() and len(text) < 9:
        return int(text)
    for path in (root / text, Path(os.path.expanduser(text))):
        if os.path.isfile(path):  # unlike Path's, False rather than an error for a name of any length
            return read_class_file(path)
    return text.split(",")


def _counted(classes: Sequence[str] | int) -> tuple[int, tuple[str, ...]]:
    return (classes, ()) if isinstance(classes, int) else (len(classes), tuple(classes))


def made_up(count: int) -> tuple[str, ...]:
    """Names of so many classes that nobody has named."""
    many = min(count, MOST + 1)
    return (BACKGROUND, DEFECT) if many == 2 else (BACKGROUND, *(f"class{i}" for i in range(1, many)))


def _same_names(ref: str, said: list[tuple[str, tuple[str, ...]]]) -> None:
    """Raise BadInput where two places number the same classes differently. Names made up for lack of others yield."""
    first, known = "", tuple[str, ...]()
    for place, names in said:
        if not names or all(map(_MADE_UP.fullmatch, names)) or place == "its masks":
            continue
        if known and any(name in known and known.index(name) != at for at, name in enumerate(names)):
            raise BadInput(
                f"data {one_line(ref, most=200)!r}: the classes of {first} are {', '.join(known[:9])}, those of "
                f"{place} {', '.join(names[:9])}: give both one order"
            )
        first, known = first or place, known or names
