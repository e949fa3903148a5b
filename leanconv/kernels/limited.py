"""Other programs (compilers), run for a limited time: one that hangs must not hang us."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

# Our longest source takes 2 s of a core.
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
    return run_all([words], environment)[0]


def run_all(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str] | None = None, *, at_once: int = 1
) -> list[subprocess.CompletedProcess[str]]:
    """Run programs like `run`, so many at a time. Whatever is raised, none of them lives on."""
    running, done = list[subprocess.Popen[str]](), list[subprocess.CompletedProcess[str]]()

    def wait() -> None:
        out, err = running[0].communicate(timeout=limit_s())
        process = running.pop(0)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))

    try:
        for words in commands:
            if len(running) == at_once:
                wait()
            running.append(_started(words, environment))
        while running:
            wait()
    except BaseException:
        for process in running:
            _end(process)
        for process in running:
            with process:  # closes what it may have handed on to a server, and waits
                pass
        raise
    return done


def _started(words: Sequence[str], environment: Mapping[str, str] | None) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill the whole group: a compiler's children would survive it and hold its output open."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            return
    process.kill()
