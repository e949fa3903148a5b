"""Which files are ours: only such a file is replaced without asking, also where the user named it himself.

An exported file and an HTML page say in themselves who wrote them. Of the other reports, which others' programs read as
they are, their form tells: the keys of a JSON object, the rule below a table's head.
"""

import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.version import __version__

_MARK = "written by leanconv"
_RULE = "─"
_LARGEST = 1 << 26  # bytes of a report that is looked at


def origin() -> str:
    """What a file of ours that can say so says somewhere."""
    return f"{_MARK} {__version__}"


def check_own(path: Path, overwrite: bool, *companions: Path) -> None:
    """Raise BadInput where a file stands that does not say that leanconv wrote it, unless `overwrite` lets it go.

    Args:
        companions: files that belong to the one at `path`; without it they are somebody else's.
    """
    if overwrite:
        return
    if _in_the_way(path) and not _is_marked(path):
        raise _foreign(path)
    for each in companions:
        if _in_the_way(each) and not path.exists():
            raise _foreign(each)


def check_report(path: Path, numbers: Iterable[str] | None = None) -> None:
    """Raise BadInput where something stands that is no report of ours; with `numbers`, no report of those numbers."""
    if not _in_the_way(path):
        return
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise _foreign(path)
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _foreign(path) from error
    if path.suffix == ".json":
        keys = _keys(content)
        ours = keys is not None and (numbers is None or 2 * len(keys & set(numbers)) >= len(keys | set(numbers)))
    else:
        ours = _keys(content) is not None or any(set(line) == {_RULE} for line in content.replace(" ", "").splitlines())
    if not ours:
        raise _foreign(path)


def _foreign(path: Path) -> BadInput:
    return BadInput(f"{path} is there already, and leanconv did not write it: give another name, or say --overwrite")


def _in_the_way(path: Path) -> bool:
    """Whether something would be lost; a folder is refused by whoever writes, in his own words."""
    if not os.path.lexists(path) or path.is_dir():
        return False
    return not path.is_file() or path.stat().st_size > 0


def _is_marked(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(_MARK.encode()) >= 0
    except (OSError, ValueError):
        return False


def _keys(content: str) -> set[str] | None:
    """The keys of a JSON object; None for anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return set(value) if isinstance(value, dict) else None
