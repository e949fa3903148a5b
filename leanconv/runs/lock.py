"""One writer at a time in a run folder: who comes second is told who is there, and changes nothing."""

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

_PATIENCE_S = 1.0  # a look at who is there takes the lock for a moment
# What the first version left of a write that was killed.
_LEFT = re.compile(r"\.(state|model|recipe|history|metrics)\.[a-z0-9_]{8}\.(safetensors|json|toml|csv)")


@contextmanager
def writing(path: Path, what: str) -> Iterator[None]:
    """Hold the folder `path`, made if need be, for this process alone; `what` tells others what it does there.

    What killed writers left there is removed first; a folder that was made and is empty in the end goes again.
    Raises: BadInput where another process writes there, or nothing can be written.
    """
    with ExitStack() as held:
        try:
            _make(path, held)
            said = f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M')}: {what}"
            held.enter_context(Lock(path / LOCK, said, patience_s=_PATIENCE_S))
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
    """Who writes into a run folder now; "" for nobody, as far as can be known."""
    found = holder(path / LOCK)
    return "" if found is None else found or "another process"


def _make(path: Path, held: ExitStack) -> None:
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):  # `held` removes them the other way round
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
