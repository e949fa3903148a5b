"""Drafts: write files into a hidden folder first, which is removed at the end or after the writer's death.

A draft's folder contains a lock. If another process can take the lock, the writer is dead, and that process removes
the folder.
"""

import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from leanconv.files.locks import LOCK, Held, Lock

PREFIX = ".leanconv-"  # prefix of drafts' names
# A draft without a lock is left alone for this long. Its writer may be about to lock it, or the file system has no
# locks.
_UNLOCKED_S = 3600.0
_swept: set[tuple[str, str]] = set()


@contextmanager
def draft(beside: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """Yield a hidden folder inside `beside` to write into and move files out of. It is removed afterwards.

    It also contains the file `LOCK`. A process's first draft in a folder removes the drafts of dead processes.
    Raises: OSError if the folder cannot be created.
    """
    place = (os.path.realpath(beside), prefix)
    if place not in _swept:
        _swept.add(place)
        sweep(beside, prefix)
    with ExitStack() as held:
        yield _new_folder(beside, prefix, held)


@contextmanager
def draft_on_demand(beside: Path) -> Iterator[Callable[[], Path]]:
    """Yield a function that gives one `draft` to every caller. Its first call creates it."""
    with ExitStack() as held:
        yield functools.cache(lambda: held.enter_context(draft(beside)))


def _new_folder(beside: Path, prefix: str, held: ExitStack) -> Path:
    """Create a folder and its lock. `held` releases the lock and removes the folder."""
    while True:
        directory = tempfile.TemporaryDirectory(prefix=prefix, dir=beside)
        folder = Path(directory.name)
        lock = Lock(folder / LOCK)
        try:
            lock.__enter__()
        except Held:  # a sweeping process took it first and is about to remove it
            _discard(directory)
            continue
        except OSError:  # no locks here, so a killed writer's draft stays
            pass
        held.callback(_discard, directory)
        held.push(lock)
        return folder


def _discard(directory: tempfile.TemporaryDirectory[str]) -> None:
    with suppress(OSError):
        directory.cleanup()


def sweep(folder: Path, prefix: str = PREFIX) -> None:
    """Remove drafts of dead writers from a folder."""
    try:
        with os.scandir(folder) as entries:
            drafts = [Path(entry.path) for entry in entries if entry.name.startswith(prefix)]
    except OSError:  # the folder does not exist yet
        return
    for left in drafts:
        with suppress(OSError, Held):
            seen = left.lstat()
            if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != _user():
                continue
            if (left / LOCK).is_file():
                with Lock(left / LOCK):
                    shutil.rmtree(left, ignore_errors=True)
                shutil.rmtree(left, ignore_errors=True)  # Windows cannot remove the lock's file earlier
            elif time.time() - seen.st_mtime > _UNLOCKED_S:
                left.rmdir()  # only if empty: files in it may not be ours


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0
