"""A lock between processes: a small file that the system keeps locked for as long as the process lives that holds it.

A killed process holds nothing, and the file that it leaves keeps nobody out. It is the system's lock of the open file
(flock; on Windows a byte far behind the text), so that two threads of one process exclude each other too.

Why not the library filelock: its versions differ in what matters here. Some empty the file at every attempt, so that
nobody knows who holds it; some do not see that the file was replaced while they waited.
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

LOCK = "leanconv.lock"  # its name in every folder that is locked
_FAR = 1 << 30  # the byte that Windows locks: the text before it stays readable
_SHOWN = 200  # letters of the text that are shown


class NoLocks(OSError):
    """The file system locks no files."""


class Held(Exception):
    """Somebody else has the lock; the message is what he wrote into it, perhaps nothing."""


class Lock:
    """Locks `path` while it is open, and removes the file in the end.

    Args:
        said: what others read who do not get it.
        patience_s: how long to wait for it.
    Raises, when it is entered: Held where another holds it; NoLocks where none can be had; another OSError where the
        file cannot be made.
    """

    def __init__(self, path: Path, said: str = "", *, patience_s: float = 0.0) -> None:
        self.path, self.said, self.patience_s = path, said, patience_s
        self._handle: int | None = None

    def __enter__(self) -> Self:
        end = time.monotonic() + self.patience_s
        while True:
            handle = _opened(self.path)
            try:
                locked = _lock(handle)
                if locked and _stands(self.path, handle):
                    _write(handle, self.said)
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
        if self._handle is None:  # a child process that was forked meanwhile holds nothing
            return
        _held.discard(self)
        handle, self._handle = self._handle, None
        if sys.platform == "win32":
            os.close(handle)  # an open file cannot be removed there
            self._remove()
        else:
            self._remove()  # while it is locked: whoever waits for it sees that it is gone, and makes a new one
            os.close(handle)

    def _remove(self) -> None:
        try:
            self.path.unlink()
        except OSError:  # its folder is gone, or another process has just taken it
            return


def holder(path: Path) -> str | None:
    """What the holder of a lock wrote into it; None where nobody holds it, or that cannot be known."""
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
    except PermissionError:  # another user's, left by a kill: it can be locked all the same
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
        except OSError as error:  # a network's file system, as a rule
            raise NoLocks(error.errno, error.strerror) from error
        return True


def _stands(path: Path, handle: int) -> bool:
    """Whether the open file is still the one of that name: its holder removes it."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _write(handle: int, text: str) -> None:
    try:
        os.ftruncate(handle, 0)
        os.write(handle, text.encode(errors="replace"))  # nothing was read or written before: it stands at the start
    except OSError:  # a full disk, another user's file: the lock holds without a word
        return


def _text(handle: int) -> str:
    """The first line, as far as it may be printed: anybody may have written it."""
    os.lseek(handle, 0, os.SEEK_SET)
    line = os.read(handle, 4 * _SHOWN).decode(errors="replace").split("\n")[0]
    return one_line(line)[:_SHOWN]


def _let_go() -> None:
    """A forked child (a worker that prepares images) would hold its parent's locks after the parent's death."""
    for lock in _held:
        if lock._handle is not None:
            os.close(lock._handle)
            lock._handle = None
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
