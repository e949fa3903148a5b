"""Drafts: what is written beside its place first, in a hidden folder that goes in the end or after its writer's death.

A draft's folder holds a lock. Where that can be had the writer is dead, and the next writer there removes the folder.
"""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from leanconv.files.locks import LOCK, Held, Lock

PREFIX = ".leanconv-"  # begins the names of drafts
_UNLOCKED_S = 3600.0  # a draft without a lock is being made, or its writer died at that moment, or nothing locks there
_swept: set[tuple[str, str]] = set()


@contextmanager
def draft(beside: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """A hidden folder in the folder `beside`, to write into and to move files out of; gone afterwards.

    It holds one file more, `LOCK`. The first draft of a process in a folder removes there what dead processes left.
    Raises: OSError where none can be made.
    """
    place = (os.path.realpath(beside), prefix)
    if place not in _swept:
        _swept.add(place)
        sweep(beside, prefix)
    with ExitStack() as held:
        yield _made(beside, prefix, held)


def _made(beside: Path, prefix: str, held: ExitStack) -> Path:
    """A new folder with its lock; `held` gives back the lock and removes the folder."""
    while True:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=beside)
        folder = Path(made.name)
        lock = Lock(folder / LOCK)
        try:
            lock.__enter__()
        except Held:  # a sweeper was quicker, and is about to remove it
            _discard(made)
            continue
        except OSError:  # nothing can be locked here: what a kill leaves stays
            pass
        held.callback(_discard, made)
        held.push(lock)
        return folder


def _discard(made: tempfile.TemporaryDirectory[str]) -> None:
    with suppress(OSError):
        made.cleanup()


def sweep(folder: Path, prefix: str = PREFIX) -> None:
    """Remove the drafts in a folder whose writers are dead."""
    try:
        with os.scandir(folder) as entries:
            drafts = [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    except OSError:  # no such folder yet
        return
    for left in drafts:
        with suppress(OSError, Held):
            seen = left.lstat()
            if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != _user():
                continue
            if (left / LOCK).is_file():
                with Lock(left / LOCK):
                    shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)  # Windows keeps the lock's file until here
            elif time.time() - seen.st_mtime > _UNLOCKED_S:
                left.rmdir()  # if it is empty: more than that is not ours for certain


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
