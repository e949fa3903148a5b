"""Allow one writer at a time in a run folder. A second writer changes nothing and learns the first one's name."""

import os
import platform
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.files import LOCK, Held, Lock, NoLocks, holder, sweep

_PATIENCE_S = 1.0  # `in_use` holds the lock for a moment
# Temporary files that version 0.1 left after a killed write.
_LEFT = re.compile(r"\.(state|model|recipe|history|metrics)\.[a-z0-9_]{8}\.(safetensors|json|toml|csv)")


@contextmanager
def writing(path: Path, what: str) -> Iterator[None]:
    """Lock the folder `path` for this process and create it if missing. `what` shows others the current work.

    Files of killed writers are removed first. A folder created here is removed if it stays empty.
    Raises: BadInput if another process writes there, or the folder is not writable.
    """
    with ExitStack() as held:
        try:
            _make(path, held)
            note = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M')}: {what}"
            held.enter_context(Lock(path / LOCK, note, patience_s=_PATIENCE_S))
        except Held as error:
            raise BadInput(
                f"{path} is in use by {str(error) or 'another process'}; wait until it is done, or take another folder"
            ) from error
        except NoLocks as error:
            text = f"nothing keeps a second run out of it, its file system has no locks ({error.strerror or error})"
            warnings.warn(f"{path}: {text}", stacklevel=3)
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error
        _tidy(path)
        yield


def in_use(path: Path) -> str:
    """Return the process that writes into a run folder now, or "" if none is known."""
    found = holder(path / LOCK)
    return "" if found is None else found or "another process"


def _make(path: Path, held: ExitStack) -> None:
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):  # `held` removes them in reverse order
        held.callback(_remove_if_empty, each)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _tidy(path: Path) -> None:
    for folder in (path, path / "last", path / "export"):
        sweep(folder)
        with suppress(OSError):
            for left in [each for each in folder.iterdir() if _LEFT.fullmatch(each.name) and each.is_file()]:
                left.unlink()
