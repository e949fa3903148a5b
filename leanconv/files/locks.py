"""A lock between processes: a small file that the system keeps locked while its holder lives.

A killed process loses its lock, and the file it leaves blocks nobody. The lock belongs to the open file, so two
threads of one process exclude each other too. It is a flock, or on Windows a locked byte far behind the text.

The library filelock does not fit, because its versions differ here. Some empty the file at every attempt, so the
holder's name is lost. Some do not notice that the file was replaced while they waited.
"""

import os
import stat
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from leanconv.text import one_line

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "leanconv.lock"  # the lock's name in every locked folder
_FAR = 1 << 30  # offset of the byte that Windows locks: the text before it stays readable
_SHOWN = 200  # characters of the text that are shown


class NoLocks(OSError):
    """The file system does not support locks."""


class Held(Exception):
    """Another process has the lock. The message is its text in the lock file, which may be empty."""


class Lock:
    """Lock `path` inside a `with` block, and remove the file at the end.

    Args:
        text: text for others that find it locked.
        patience_s: seconds to wait for the lock.
    Raises on entry: Held if another process holds it. NoLocks if the file system has no locks. Another OSError if the
        file cannot be created.
    """

    def __init__(self, path: Path, text: str = "", *, patience_s: float = 0.0) -> None:
        self.path, self.text, self.patience_s = path, text, patience_s
        self._handle: int | None = None

    def __enter__(self) -> Self:
        end = time.monotonic() + self.patience_s
        while True:
            handle = _opened(self.path)
            try:
                locked = _lock(handle)
                if locked and _stands(self.path, handle):
                    _write(handle, self.text)
                    self._handle = handle
                    _held.add(self)
                    return self
                if not locked and time.monotonic() >= end:
                    raise Held(_text(handle))
            finally:
                if self._handle is None:
                    os.close(handle)
            if not locked:
                time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is None:  # a forked child holds no locks
            return
        _held.discard(self)
        handle, self._handle = self._handle, None
        if sys.platform == "win32":
            os.close(handle)  # Windows cannot remove an open file
            self._remove()
        else:
            self._remove()  # while still locked: a waiting process sees that it is gone and creates a new one
            os.close(handle)

    def _remove(self) -> None:
        try:
            self.path.unlink()
        except OSError:  # the folder is gone, or another process has just taken the file
            return


def holder(path: Path) -> str | None:
    """Return the text of a lock's holder. None if the lock is free or cannot be tested."""
    try:
        handle = os.open(path, os.O_RDONLY | _CAREFUL)
    except OSError:
        return None
    try:
        return None if _lock(handle, shared=True) else _text(handle)
    except OSError:
        return None
    finally:
        os.close(handle)


_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_held: set[Lock] = set()


def _opened(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _CAREFUL, 0o666)
    except PermissionError:  # another user's file: it can still be locked
        handle = os.open(path, os.O_RDONLY | _CAREFUL)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path.name} is no regular file")
    return handle


if sys.platform == "win32":

    def _lock(handle: int, *, shared: bool = False) -> bool:
        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        if shared:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
        return True

else:

    def _lock(handle: int, *, shared: bool = False) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:  # usually a network file system
            raise NoLocks(error.errno, error.strerror) from error
        return True


def _stands(path: Path, handle: int) -> bool:
    """Whether `path` still names the open file. Its holder removes it on release."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _write(handle: int, text: str) -> None:
    try:
        os.ftruncate(handle, 0)
        os.write(handle, text.encode(errors="replace"))  # the file position is still 0
    except OSError:  # a full disk or another user's file: the lock works without a text
        return


def _text(handle: int) -> str:
    """Return the first line, escaped and cut: any process may have written it."""
    os.lseek(handle, 0, os.SEEK_SET)
    line = os.read(handle, 4 * _SHOWN).decode(errors="replace").split("\n")[0]
    return one_line(line)[:_SHOWN]


def _let_go() -> None:
    """Release locks in a forked child. A data worker would otherwise hold them after its parent's death."""
    for lock in _held:
        if lock._handle is not None:
            os.close(lock._handle)
            lock._handle = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
