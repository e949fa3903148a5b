"""Several files put in place as one: drafted in a hidden folder beside their target, then moved."""

import os
import tempfile
import threading
from pathlib import Path

from leanconv.errors import BadInput, LeanconvError

_MOVING = threading.Lock()  # two pairs moved to one place at once would end as one's main file with the other's weights


class Beside:
    """A hidden folder next to `path`, gone afterwards; what cannot be written becomes one clear line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> str:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.folder = tempfile.TemporaryDirectory(
                prefix=".export-", dir=self.path.parent, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise self._unwritable(error) from error
        return self.folder.name

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.folder is not None:
            self.folder.cleanup()
        if isinstance(error, OSError) and not isinstance(error, LeanconvError):
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(
            f"{self.path}: cannot be written: {error.strerror or error}; the old file, if any, is untouched"
        )  # fmt: skip


def move_into_place(folder: Path, path: Path) -> tuple[Path, ...]:
    """Put the draft and its weight file in place, weights first: whoever finds the main file finds its own weights."""
    with _MOVING:
        return _move(folder, path)


def _move(folder: Path, path: Path) -> tuple[Path, ...]:
    drafts = sorted(folder.iterdir(), key=lambda each: each.name == path.name)
    targets = [path.parent / each.name for each in drafts]
    for draft in drafts:
        with draft.open("rb") as file:
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
        for draft, target in zip(drafts, targets, strict=True):
            draft.replace(target)
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
