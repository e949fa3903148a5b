"""Replace several files as one: write drafts into a hidden folder beside the target, then move them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.files import LOCK, Held, Lock, draft

_DRAFT = ".export-"
_MOVING = ".export.lock"  # without it, two concurrent exports could mix one's main file with the other's weights
_PATIENCE_S = 60.0


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a hidden folder next to `path` and delete it afterwards. Raises BadInput if writing fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft(path.parent, _DRAFT) as folder:
            yield folder
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror or error}; the old file, if any, is untouched"
        ) from error


def move_into_place(folder: Path, path: Path) -> tuple[Path, ...]:
    """Move the draft and its weight file into place, weights first: a reader of the main file finds its weights."""
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
    # Move the old main file away first. A kill in between leaves no main file, never one with wrong weights.
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
