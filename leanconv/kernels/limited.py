"""Other programs (compilers), run for a limited time: one that hangs must not hang us."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

# Our longest source takes 0.6 s on a busy core of a 2-core server.
LIMIT_S = 20.0


def limit_s() -> float:
    """Seconds that a program may take: more where so many processes wait for a core that each gets a share of one."""
    try:
        waiting = os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):  # Windows; not obtainable
        waiting = 0.0
    return LIMIT_S * max(1.0, waiting)


def run(words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program without input, and wait for it; its output is captured, whatever bytes it has.

    Raises: subprocess.TimeoutExpired after `limit_s()` seconds: then it and its children are killed; OSError where
        it cannot be run.
    """
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=limit_s())
        except BaseException:
            _end(process)
            raise
    return subprocess.CompletedProcess(list(words), process.returncode, out, err)


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill the whole group: a compiler's children would survive it and hold its output open."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            return
    process.kill()
