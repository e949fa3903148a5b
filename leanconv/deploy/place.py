"""Several files put in place as one: drafted in a hidden folder beside their target, then moved."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.files import LOCK, Held, Lock, draft

_DRAFT = ".export-"
_MOVING = ".export.lock"  # two pairs moved to one place at once would end as one's main file with the other's weights
_PATIENCE_S = 60.0


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden folder next to `path`, gone afterwards; what cannot be written becomes one clear line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft(path.parent, _DRAFT) as folder:
            yield folder
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror or error}; the old file, if any, is untouched"
        ) from error


def move_into_place(folder: Path, path: Path) -> tuple[Path, ...]:
    """Put the draft and its weight file in place, weights first: whoever finds the main file finds its own weights."""
    try:
        with Lock(path.parent / _MOVING, patience_s=_PATIENCE_S):
            return _move(folder, path)
    except Held as held:
        raise BadInput(f"{path}: another export is being put into this folder; try again when it is done") from held


def _move(folder: Path, path: Path) -> tuple[Path, ...]:
    drafts = sorted((each for each in folder.iterdir() if each.name != LOCK), key=lambda each: each.name == path.name)
    targets = [path.parent / each.name for each in drafts]
    for each in drafts:
        with each.open("rb") as file:
            os.fsync(file.fileno())
    # The old main file steps aside first: a kill in between leaves no main file, never one with another's weights.
    kept = folder / "old"
    kept.mkdir()
    moved: list[Path] = []
    old = [target for target in reversed(targets) if target.exists()]
    try:
        if len(targets) > 1:
            for target in old:
                target.replace(kept / target.name)
        for each, target in zip(drafts, targets, strict=True):
            each.replace(target)
            moved.append(target)
    except BaseException:
        for target in moved:
            if len(targets) > 1:
                target.unlink(missing_ok=True)
        for target in old:
            if (kept / target.name).exists():
                (kept / target.name).replace(target)
        raise
    return tuple(reversed(targets))
