"""The image files of a folder. Other files are counted: none disappears silently."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.train.data.decode import FORMAT_NAMES, formats

# Files of systems and editors, never data.
_JUNK = frozenset({
    "__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "desktop.ini", "ehthumbs.db",
})  # fmt: skip
_SHOWN = 5  # suffixes that a line names


@cache
def suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the image formats that are read."""
    with needs("pillow", "train"):
        from PIL import Image

    known = {*formats(), "MPO"}  # a camera's .mpo is a JPEG with further pictures behind it
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in known)


@dataclass
class Found:
    """The images of a folder; the skipped files, counted by suffix; the skipped folders."""

    images: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)


def images_in(folder: Path) -> Found:
    """The images directly in a folder, by name. Raises BadInput if it cannot be listed."""
    found = Found()
    for path, is_folder in _entries(folder):
        if is_folder:
            found.folders.append(path.name)
        else:
            _sort(path, found)
    return found


def images_below(folder: Path) -> Found:
    """The images of a folder and of the folders in it, linked ones too. Raises BadInput where one cannot be listed."""
    found = Found()
    for path in _below(folder):
        _sort(path, found)
    found.images.sort()
    return found


def holds_images(folder: Path) -> bool:
    """Whether a folder or one of its subfolders has an image."""
    return any(path.suffix.lower() in suffixes() for path in _below(folder))


def _below(folder: Path) -> Iterator[Path]:
    """The files below a folder; each real folder is entered once, and none that holds the folder itself."""
    entered: set[str] = set()
    start = os.path.realpath(folder)

    def stop(error: OSError) -> None:
        raise BadInput(f"{error.filename}: cannot be listed: {error.strerror}") from error

    for here, folders, files in os.walk(folder, followlinks=True, onerror=stop):
        real = os.path.realpath(here)
        if real in entered or start.startswith(os.path.join(real, "")):  # a link: seen, or above
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not _is_junk(name)]
        yield from (Path(here, name) for name in files if not _is_junk(name))


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones and those of systems. Raises BadInput."""
    return [path for path, is_folder in _entries(folder) if is_folder]


def left_out(found: Iterable[Found]) -> str:
    """A line that lists the skipped files of some folders; empty without any."""
    found = list(found)
    others = sum((each.others for each in found), Counter())
    folders = [name for each in found for name in each.folders]
    parts = []
    if others:
        parts.append(f"{_number(others.total(), 'file')} ({_listed(others)})")
    if folders:
        more = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
        parts.append(f"{_number(len(folders), 'folder')} ({', '.join(folders[:3])}{more})")
    return f"left out: {', '.join(parts)}" if parts else ""


def no_images(found: Found) -> str:
    """The message for a folder without images."""
    there = f"it has {_listed(found.others)}; " if found.others else ""
    return f"no images ({there}{FORMAT_NAMES} is read)"


def _entries(folder: Path) -> list[tuple[Path, bool]]:
    """A folder's entries by name, and whether each is a folder, without a system call per file."""
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not _is_junk(entry.name)]
            return sorted(
                (folder / each.name, os.path.isdir(each) if each.is_symlink() else each.is_dir()) for each in kept
            )
    except OSError as error:
        raise BadInput(f"{folder}: cannot be listed: {error.strerror}") from error


def _sort(path: Path, found: Found) -> None:
    suffix = path.suffix.lower()
    if suffix in suffixes():
        found.images.append(path)
    else:
        found.others[suffix or "no suffix"] += 1


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def _listed(others: Counter[str]) -> str:
    shown = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(_SHOWN))
    return shown + (f" and {len(others) - _SHOWN} more suffixes" if len(others) > _SHOWN else "")


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"
