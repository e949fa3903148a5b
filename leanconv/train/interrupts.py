"""Ctrl-C and SIGTERM as a flag that the loop reads between steps: a run stops where it can resume."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

# One Ctrl-C arrives twice if a launcher forwards it.
PATIENCE_S = 1.0


class Stopped(Exception):
    """Stops a validation; never leaves the training loop."""


class Interrupts:
    """While open, the first SIGINT or SIGTERM only sets `asked`; one that comes `PATIENCE_S` later acts as usual.

    Outside the main thread signals cannot be caught: `asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        self._since = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self._since = True, now
        elif now - self._since > PATIENCE_S:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
