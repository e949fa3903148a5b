"""Work ahead: another process fills a cache on a free core before an engine's turn, and rests while forms are timed.

`torch.compile` takes longest of all engines, and Inductor keeps what it compiles on the disk. Without the helper
everything works, and takes longer.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from leanconv.engine import helper
from leanconv.kernels import usable_cores

# From so many seconds of other preparations on a helper pays: it first imports PyTorch and its compiler.
WORTH_S = 10.0
# A larger model is not copied into another process.
MOST_BYTES = 1 << 30
# It leaves the cores to the engines that are being prepared.
NICE = 5
_WENT_WELL, _FAILED = b".", b"x"  # what the process says of a piece of work
_GROUPS = hasattr(os, "killpg")  # systems where a process and its compilers can be stopped and continued


def why_not(weight_bytes: int, seconds: float) -> str:
    """Why no helper is started for a model of so many bytes, with so many seconds of other preparations; or ""."""
    if len(usable_cores()) < 2:
        return "no free core"
    if not _GROUPS or not sys.executable or getattr(sys, "frozen", False):  # a program that is no interpreter
        return "no process that can be stopped and continued"
    if weight_bytes > MOST_BYTES:
        return "the model is too large for a copy in another process"
    return "" if seconds >= WORTH_S else "the other preparations are too short"


# A function of a module, and its arguments.
Work = tuple[Callable[..., object], tuple[Any, ...]]


class Ahead:
    """A process that does a list of work in its order."""

    def __init__(self, work: Sequence[Work]) -> None:
        """Raises pickle.PicklingError and others if something has no copy in another process, OSError without one."""
        listed = pickle.dumps(list(work))  # from us to ourselves: it never lies in a file
        first = pickle.dumps((list(sys.path), torch.get_num_threads()))
        self._finished, self._resting = b"", 0
        root = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        # A pipe of its own: what a site's start-up files and the model's modules print is no byte of ours.
        hears, says = os.pipe()
        self._said = os.fdopen(hears, "rb", buffering=0)
        os.set_blocking(hears, False)
        try:
            # A group of its own in this session: if we die while it is stopped, the system ends it.
            self._process = subprocess.Popen(
                [sys.executable, "-P", helper.__file__, str(os.getpid()), str(says)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[says],
                env=os.environ | {"PYTHONPATH": path, "TORCH_WARM_POOL": "0"},
                process_group=0,
            )
        except BaseException:
            self._said.close()
            raise
        finally:
            os.close(says)
        threading.Thread(target=_feed, args=(self._process.stdin, first + listed), daemon=True).start()

    @property
    def finished(self) -> list[bool]:
        """For each piece of the list that had its turn: whether it went well."""
        with contextlib.suppress(OSError):
            self._finished += self._said.read(1 << 10) or b""
        return [said == _WENT_WELL[0] for said in self._finished]

    @property
    def busy(self) -> bool:
        """Whether it still works."""
        return self._process.poll() is None

    @contextlib.contextmanager
    def rest(self) -> Iterator[None]:
        """Inside, the process and its compilers stand still."""
        self._resting += 1
        if self._resting == 1:
            self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._resting -= 1
            if not self._resting:
                self._signal(signal.SIGCONT)

    def end(self) -> None:
        """End the process. A compiler that it has started finishes its file, which others may find in the cache."""
        self._signal(signal.SIGCONT)
        self._process.kill()  # SIGTERM may be ignored or blocked, which a process inherits
        self._process.wait()
        self._said.close()

    def _signal(self, which: signal.Signals) -> None:
        if self.busy:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, which)


def _feed(stream: IO[bytes], data: bytes) -> None:
    with contextlib.suppress(OSError, ValueError), stream:  # the process may have ended
        stream.write(data)


def main(parent: int, says: int) -> None:
    """Do the work on standard input, as long as `parent` lives; a byte into `says` for each piece that is done."""
    os.set_inheritable(says, False)
    os.nice(NICE)
    sys.path[:], threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    for run, arguments in pickle.load(sys.stdin.buffer):
        if os.getppid() != parent:
            break
        said = _FAILED
        with contextlib.suppress(Exception):  # the engine says why when its turn comes
            run(*arguments)
            said = _WENT_WELL
        os.write(says, said)
    os._exit(0)
