"""Where compiled kernels are kept: native code, so an entry is used only if it is ours, unchanged and nobody else's.

A folder of mode 0700 that this user owns, below folders that nobody else can change; each entry is one file, its last
32 bytes the SHA-256 of key and content. Links, foreign or group-writable files, and entries whose hash is wrong are
never loaded: they are built again. What was not used for longest goes when the folder outgrows `LIMIT`.
"""

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from leanconv.files import LOCK, Held, Lock, draft, sweep
from leanconv.kernels.cpu.compilation.permissions import BUILDING, claim, entry_name, ours, shut
from leanconv.kernels.cpu.tuning.cpu import cpuinfo

_HASH = 32
LIMIT = 512 << 20  # bytes; a kernel is some 16 KiB
_LOOK_EVERY = 64  # entries that a process adds between two looks at the folder's size
_TOUCH_AFTER_S = 3600.0  # an entry's time is that of its last use, to the hour
_ABANDONED_S = 3600.0  # what is half-built for so long was left by a process that was killed


class Blocked(OSError):
    """Something stands where an entry belongs and cannot be removed; the folder serves for all others."""


_gone: dict[Path, str] = {}  # folders that this process has given up, and why
_added = itertools.count()


def default_folder() -> Path:
    """`LEANCONV_CACHE` if it is set, else the platform's folder for caches."""
    if told := os.environ.get("LEANCONV_CACHE"):
        return Path(os.path.expanduser(told))  # "~nobody" stays as it is where Path would raise
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "leanconv"
    home = Path(os.path.expanduser("~"))  # "~" itself if no home is known: `folders` refuses it
    return home / "Library" / "Caches" / "leanconv" if sys.platform == "darwin" else home / ".cache" / "leanconv"


def folders(wanted: Path) -> Iterator[Path]:
    """The folders to try in turn: `wanted` if it can be ours alone, then some that last as long as this process.

    A caller that cannot use a folder calls `give_up` and takes the next. Kernels in `wanted` may be loaded even where
    none can be added (an image with a read-only file system).
    """
    if (reason := claim(wanted)) is not None:
        give_up(wanted, reason)
    else:
        yield wanted
    for parent in dict.fromkeys(["", "/dev/shm"]):
        made = _temporary(parent)
        if made is not None and made not in _gone:
            yield made


def give_up(path: Path, why: object) -> None:
    """Add no more to a folder in this process. Warns once, unless it is one that nobody asked for."""
    if path in _gone:
        return
    reason = why.strerror or str(why) if isinstance(why, OSError) else str(why)
    _gone[path] = reason
    if not path.name.startswith(_TEMPORARY):
        warnings.warn(
            f"compiled kernels cannot be kept in {path} ({reason}): each process compiles its own; "
            "set LEANCONV_CACHE to a folder that you own",
            stacklevel=2,
        )


def shut_reason(path: Path) -> str:
    """Why nothing can be added to a folder that is ours, "" where it can."""
    return _gone.get(path) or shut(path)


def reasons() -> str:
    """Why the folders that were given up do not serve."""
    return "; ".join(f"{path}: {reason}" for path, reason in _gone.items())


_TEMPORARY = "leanconv-kernels-"


@functools.lru_cache(4)
def _temporary(parent: str) -> Path | None:
    """A folder for this process alone, in `parent` (empty: the system's temporary folder); None where that fails."""
    import atexit

    try:
        place = Path(parent or tempfile.gettempdir())
        sweep(place, _TEMPORARY)  # those of processes that were killed: in /dev/shm they take memory
        made = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=place))  # mode 0700
    except OSError:
        return None
    lock = Lock(made / LOCK)
    with contextlib.suppress(OSError, Held):
        lock.__enter__()
    atexit.register(_remove, made, lock, os.getpid())
    if (reason := claim(made)) is not None:
        give_up(made, reason)
    return made


def _remove(folder: Path, lock: Lock, owner: int) -> None:
    if os.getpid() == owner:  # a forked child runs its parent's clean-ups too
        lock.__exit__(None, None, None)
        shutil.rmtree(folder, ignore_errors=True)


def usage(path: Path) -> tuple[int, int]:
    """How many entries a folder has, and their bytes."""
    sizes = [size for _, size, _ in _entries(path)]
    return len(sizes), sum(sizes)


def key(*parts: str) -> str:
    """The name of an entry: a hash of everything that its code depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.lru_cache(1)
def machine() -> str:
    """The CPU's features, as far as compiled code depends on them."""
    return f"{sys.platform} {platform.machine()} {' '.join(sorted(cpuinfo()[1]))}"


def fetch(name: str, build: Callable[[Path], object], where: Path) -> Path:
    """The file `name` of the folder, built by `build(path)` unless a sound one is there. Safe among many processes.

    Returns: a path whose content was checked, ready to be loaded. Raises: OSError where the folder cannot hold it,
        Blocked where it can hold others.
    """
    path = where / f"{name}.so"
    if _sound(path, name):
        _touch(path)
        return path
    if reason := shut_reason(where):
        raise OSError(errno.EROFS, reason)
    with draft(where, BUILDING) as folder:
        temporary = folder / path.name
        build(temporary)
        content = temporary.read_bytes()
        with temporary.open("wb") as file:
            file.write(content + _digest(name, content))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o700)
        _put(temporary, path)
    if next(_added) % _LOOK_EVERY == 0:
        trim(where, LIMIT)
    return path


def _put(made: Path, path: Path) -> None:
    """Move a file into its place: a link that stands there is replaced, never followed, a folder is removed.

    Raises: Blocked where neither can be.
    """
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        made.replace(path)
    except OSError as error:
        if os.path.lexists(path):
            raise Blocked(error.errno, f"{path.name} in it cannot be replaced: {error.strerror}") from error
        raise


def has(where: Path, name: str) -> bool:
    """Whether an entry is there, sound or not."""
    return (where / f"{name}.so").exists()


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def _sound(path: Path, name: str) -> bool:
    """Whether the entry is our file, only we can write it, and it holds what we once put there."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if not ours(os.fstat(handle)):  # rules out a folder too: it opens as no file
            return False
        with os.fdopen(handle, "rb", closefd=False) as file:
            data = file.read()
    except OSError:  # a bad sector
        return False
    finally:
        os.close(handle)
    return len(data) > _HASH and data[-_HASH:] == _digest(name, data[:-_HASH])


def _touch(path: Path) -> None:
    """Note that an entry was used, at most once an hour: the folder may be on a network."""
    try:
        if time.time() - path.stat().st_mtime > _TOUCH_AFTER_S:
            os.utime(path)
    except OSError:  # another process has just removed it
        return


def trim(where: Path, limit: int) -> None:
    """Remove the least recently used entries: above `limit` bytes, until nine tenths of `limit` are left.

    A process that has loaded a removed entry keeps it. A process that is about to load it builds it again.
    """
    for left in where.glob(f"{BUILDING}*"):
        try:
            if time.time() - left.lstat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # its process was just done with it
            continue
    entries = sorted(_entries(where))
    total = sum(size for _, size, _ in entries)
    if total <= limit:
        return
    for _, size, path in entries:
        if total <= 0.9 * limit:
            break
        try:
            path.unlink(missing_ok=True)
        except OSError:  # it is held fast: the next ones go in its place
            continue
        total -= size


def _entries(where: Path) -> list[tuple[float, int, Path]]:
    """The time of last use, the size and the path of every entry that is a file or a link."""
    found = []
    try:
        with os.scandir(where) as listed:
            for entry in listed:
                if entry_name(entry.name) and not entry.is_dir(follow_symlinks=False):
                    with contextlib.suppress(OSError):  # another process has just removed it
                        stat = entry.stat(follow_symlinks=False)
                        found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
    except OSError:  # no folder yet
        return found
    return found
