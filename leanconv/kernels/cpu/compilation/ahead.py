"""Many kernels compiled at once: Halide's front end keeps a Python process to one core, so another process helps.

The two start at opposite ends of the list and meet: each finds in the cache what the other compiled, and neither waits.
Without the helper everything works, and takes longer.
"""

import contextlib
import functools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from leanconv.kernels.cpu.compilation import cache
from leanconv.kernels.cpu.compilation.build import Job, compiler, kernel, make, name_of
from leanconv.kernels.cpu.tuning.cpu import usable_cores

# From so many kernels on another process pays: it first imports PyTorch, in the time of a dozen kernels.
WORTH = 16
_LEAVING_S = 10.0  # the helper's last kernel; then all that is left of its list is there


def compile_all(jobs: Iterable[Job]) -> None:
    """Compile what this machine has not compiled before. Raises as `build.kernel` does."""
    listed = list(dict.fromkeys(jobs))
    with _helper(listed):
        for job in listed:
            kernel(*job)


@contextlib.contextmanager
def _helper(jobs: Sequence[Job]) -> Iterator[None]:
    """A process that compiles the jobs from the last to the first. It needs a free core and enough jobs."""
    where = next(cache.folders(cache.default_folder()), None) if compiler() else None
    if where is None or cache.shut_reason(where) or len(usable_cores()) < 2:
        yield
        return
    missing = [job for job in jobs if not cache.has(where, name_of(job))]
    process = _started(where, missing[::-1]) if len(missing) >= WORTH else None
    try:
        yield
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVING_S)
    finally:
        if process is not None:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let it tidy up first: the compiler that it waits for, and its drafts in the cache."""
    process.terminate()
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _started(where: Path, jobs: Sequence[Job]) -> "subprocess.Popen[bytes] | None":
    """The helper, with its list; None where no process can be started."""
    root = str(Path(__file__).parents[4])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    try:
        listed = pickle.dumps((str(where), list(jobs)))  # from us to ourselves: it never lies in a file
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "leanconv.kernels.cpu.compilation.ahead"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except (OSError, TypeError, AttributeError, pickle.PicklingError):
        return None
    with contextlib.suppress(BrokenPipeError), cast(IO[bytes], process.stdin) as stream:
        stream.write(listed)
    return process


def main() -> None:
    """The helper: compile the jobs from standard input, as long as its parent lives."""
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    where, jobs = pickle.loads(sys.stdin.buffer.read())
    for job in jobs:
        if os.getppid() != parent:
            break
        cache.fetch(name_of(job), functools.partial(make, job), Path(where))
    os._exit(0)


if __name__ == "__main__":
    main()
