"""Whether a folder is this user's alone, down from the root: what lies in it is run as native code."""

import os
import re
import shutil
import stat
from pathlib import Path

BUILDING = ".building-"  # prefix of the folders in which kernels are built
_NEEDED = 4 << 20  # bytes that a compiler may write for a kernel; without space it may end the process
_ENTRY = re.compile(r"[0-9a-f]{64}\.so")


def entry_name(name: str) -> bool:
    """Whether a file of the cache may be called so: a hash. All else in the folder is not ours to remove."""
    return _ENTRY.fullmatch(name) is not None


def claim(path: Path) -> str | None:
    """Make the folder, or say why it cannot be trusted or run from.

    A folder of ours that stood open to others is closed, and its kernels are removed: they may be theirs. One that
    holds other files was never the cache's alone, and stays as it is.
    """
    if not path.is_absolute():
        return "it is not an absolute path"
    try:
        _make(path)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            return "it is a link or a file, not a folder"
        if found.st_uid != os.getuid():
            return "another user owns it"
        if found.st_mode & 0o077:
            if not all(entry_name(entry.name) or entry.name.startswith(BUILDING) for entry in path.iterdir()):
                return "it holds other files, and others may look into it"
            path.chmod(0o700)
            for entry in path.iterdir():
                if entry_name(entry.name) and (entry.is_file() or entry.is_symlink()):
                    entry.unlink()
        if os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0):
            return "its file system runs no programs (noexec)"
        return next((why for parent in path.resolve().parents if (why := _open_to_others(parent))), None)
    except OSError as error:
        return error.strerror or str(error)


def shut(path: Path) -> str:
    """Why nothing can be added to a folder, "" where it can."""
    if os.statvfs(path).f_flag & getattr(os, "ST_RDONLY", 1):
        return "its file system is read-only"
    if not os.access(path, os.W_OK | os.X_OK):
        return "it is not writable"
    return "no space is left there" if shutil.disk_usage(path).free < _NEEDED else ""


def ours(found: os.stat_result) -> bool:
    """Whether it is a plain file of ours that nobody else can write or read."""
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _make(path: Path) -> None:
    """The folder, and those above it that are not there: for this user alone, whatever the umask is."""
    if not path.parent.exists():
        _make(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def _open_to_others(folder: Path) -> str | None:
    """Why others could put another folder in the place of one in this; None where they cannot."""
    found = folder.stat()
    if found.st_uid not in (0, os.getuid(), _nobody()):
        return f"{folder} above it belongs to another user"
    if found.st_mode & stat.S_ISVTX:
        return None  # there everybody may rename what is his own only
    if found.st_mode & 0o002:
        return f"everybody can write to {folder} above it"
    if found.st_mode & 0o020 and not _private(found.st_gid):
        return f"a group can write to {folder} above it"
    return None


def _private(group: int) -> bool:
    """Whether it is root's group, or this user's alone, as many systems make one for each user."""
    import grp
    import pwd

    if group == 0:
        return True
    try:
        user, found = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return user.pw_gid == group and found.gr_name == user.pw_name and not set(found.gr_mem) - {user.pw_name}


def _nobody() -> int:
    """The user id of the outer system's owners, inside a container without root; -1 outside one."""
    try:
        outer = Path("/proc/self/uid_map").read_text().split()
        return -1 if outer == ["0", "0", "4294967295"] else int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return -1
