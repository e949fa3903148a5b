"""Where compiled kernels are kept: native code, so an entry is used only if it is ours, unchanged and nobody else's.

A folder of mode 0700 that this user owns; each entry is one file, its last 32 bytes the SHA-256 of key and content.
Links, foreign or group-writable files, and entries whose hash is wrong are never loaded: they are built again.
"""

import functools
import hashlib
import os
import platform
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

_HASH = 32


def default_folder() -> Path:
    """`LEANCONV_CACHE` if it is set, else the platform's folder for caches."""
    if told := os.environ.get("LEANCONV_CACHE"):
        return Path(told).expanduser()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "leanconv"
    home = Path(os.path.expanduser("~"))  # "~" itself where nobody knows: such a folder is refused below
    return home / "Library" / "Caches" / "leanconv" if sys.platform == "darwin" else home / ".cache" / "leanconv"


@functools.lru_cache(8)
def folder(wanted: Path) -> Path:
    """The folder to use: `wanted` if it can be made ours alone, else one that lasts as long as this process.

    Warns once where it is not `wanted`: every process then compiles anew.
    """
    reason = _claim(wanted)
    if reason is None:
        return wanted
    warnings.warn(
        f"compiled kernels cannot be kept in {wanted} ({reason}): each process compiles its own; "
        "set LEANCONV_CACHE to a folder that you own",
        stacklevel=2,
    )
    return _temporary()


@functools.lru_cache(1)
def _temporary() -> Path:
    import atexit
    import shutil

    made = Path(tempfile.mkdtemp(prefix="leanconv-"))  # mode 0700
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def _claim(path: Path) -> str | None:
    """Make the folder, or say why it cannot be trusted or written."""
    if not path.is_absolute():
        return "it is not an absolute path"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return "it is a link or a file, not a folder"
        if found.st_uid != os.getuid():
            return "another user owns it"
        if found.st_mode & 0o077:
            path.chmod(0o700)  # ours, but others could enter: close it, and trust nothing that is in it already
            for entry in path.iterdir():
                if entry.is_file() or entry.is_symlink():
                    entry.unlink()
        if not os.access(path, os.W_OK | os.X_OK):
            return "it is not writable"
    except OSError as error:
        return error.strerror or str(error)
    return None


def key(*parts: str) -> str:
    """The name of an entry: a hash of everything that its code depends on."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@functools.lru_cache(1)
def machine() -> str:
    """The CPU's features, as far as compiled code depends on them."""
    info = Path("/proc/cpuinfo")
    flags = ""
    if info.is_file():
        lines = info.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{sys.platform} {platform.machine()} {flags}"


def fetch(name: str, build: Callable[[Path], object], where: Path) -> Path:
    """The file `name` of the folder, built by `build(path)` unless a sound one is there. Safe among many processes.

    Returns: a path whose content was checked, ready to be loaded.
    """
    path = where / f"{name}.so"
    if _sound(path, name):
        return path
    handle, text = tempfile.mkstemp(prefix=".building-", suffix=".so", dir=where)
    os.close(handle)
    temporary = Path(text)
    try:
        build(temporary)
        content = temporary.read_bytes()
        with temporary.open("wb") as file:
            file.write(content + _digest(name, content))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o700)
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        temporary.replace(path)  # a link that stands there is replaced, never followed
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _digest(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def _sound(path: Path, name: str) -> bool:
    """Whether the entry is a file of ours that only we can write, with the content that we once put there."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            return False
        data = file.read()
    return len(data) > _HASH and data[-_HASH:] == _digest(name, data[:-_HASH])
