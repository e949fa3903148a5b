"""Recognise our own files: only those are replaced without `--overwrite`, even if the user named the path.

Exported files and HTML pages contain a mark. Other reports have none, because foreign programs read them. Their
structure identifies them: the keys of a JSON object, or the rule below a table's head.
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
_LARGEST = 1 << 26  # bytes; larger files are no reports


def origin() -> str:
    """Return the mark that our files contain if their format permits it."""
    return f"{_MARK} {__version__}"


def check_own(path: Path, overwrite: bool, *companions: Path) -> None:
    """Raise BadInput if `path` exists without our mark, unless `overwrite`.

    Args:
        companions: files that belong to `path`. If `path` does not exist, they are foreign.
    """
    if overwrite:
        return
    if _in_the_way(path) and not _is_marked(path):
        raise _foreign(path)
    for each in companions:
        if _in_the_way(each) and not path.exists():
            raise _foreign(each)


def check_report(path: Path, numbers: Iterable[str] | None = None) -> None:
    """Raise BadInput if `path` exists and is no report of ours (with `numbers`: no report with those keys)."""
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
    """Whether writing would destroy something. Folders do not count: the writer refuses them with its own message."""
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
    """Return the keys of a JSON object, or None for other content."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return set(value) if isinstance(value, dict) else None
