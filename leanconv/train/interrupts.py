"""Ctrl-C and SIGTERM as a question the loop asks between steps, so that a run stops where it can go on."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Stopped(Exception):
    """Raised inside a validation that was asked to stop; never leaves the training loop."""


class Interrupts:
    """While open, the first SIGINT or SIGTERM only sets `asked`; the second one ends the process as usual.

    Outside the main thread signals cannot be caught: `asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

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
        self.asked = True
        signal.signal(number, self._before[number])
