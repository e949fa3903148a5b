"""Which engine's turn it is: the asked number type first, quick engines first, and no second unused while one waits."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from leanconv.engine import ahead
from leanconv.engine.ahead import Ahead
from leanconv.engine.budget import Budget
from leanconv.engine.candidate import Candidate
from leanconv.engine.workbench import Workbench

# After a race, an engine is still tried if this share of its estimated time fits into the budget.
HOPE = 0.85
# What a form still needs of its estimated time after another process has filled the cache for it.
OWN_SHARE = 0.45
# Seconds between two looks at the other process.
POLL_S = 0.1


class Waiting(NamedTuple):
    """A form that is not prepared yet, and its row in the table."""

    place: int
    candidate: Candidate
    dtype: torch.dtype | None


class Schedule:
    """The forms that wait for their turn.

    Another process may work ahead for some of them. While it does, the others come first, as long as they leave the
    seconds for those of the asked type.

    Attributes:
        raced: whether a race was run. From then on, an estimate is reduced by `HOPE`.
    """

    def __init__(
        self, bench: Workbench, budget: Budget, waiting: Sequence[Waiting], *, first: torch.dtype | None
    ) -> None:
        """`first`: the number type whose forms are tried first."""
        self._bench, self._budget, self._first = bench, budget, first
        self.raced = False
        self._ahead: Ahead | None = None
        self._listed: list[Waiting] = []  # what the other process does, in its order
        # Quick engines first: the budget left for the rest is then known before an engine starts to autotune.
        self.waiting = sorted(waiting, key=lambda each: (each.dtype is not first, self.estimate(each)))

    def needs(self, each: Waiting) -> float:
        """The estimated seconds of a form's preparation."""
        return self._budget.paced(self.estimate(each))

    def estimate(self, each: Waiting) -> float:
        """Likewise, on the servers that the estimates come from."""
        share = OWN_SHARE if self._is_done(each) else 1.0
        return share * each.candidate.estimate(self._bench, each.dtype)

    def _is_done(self, each: Waiting) -> bool:
        """Whether the other process has filled the cache for a form."""
        if self._ahead is None:
            return False
        return any(well and each == listed for listed, well in zip(self._listed, self._ahead.finished))

    def _in_work(self) -> list[Waiting]:
        """The waiting forms whose cache the other process fills or will fill."""
        if self._ahead is None or not self._ahead.busy:
            return []
        return [each for each in self._listed[len(self._ahead.finished) :] if each in self.waiting]

    def next(self, timing_s: float) -> Waiting | None:
        """Take the form whose turn it is; None if none fits into the budget beside `timing_s` of timing.

        This waits for the other process if nothing else fits, and a form will fit once its cache is filled.
        """
        while True:
            in_work = self._in_work()  # looked at first: what is finished after this look is one of the fitting
            fitting = [each for each in self.waiting if self._fits(each, timing_s)]
            found = next((each for each in fitting if self._passes(each, timing_s, in_work)), None)
            found = found or next(iter(fitting), None)
            if found is not None:
                self.waiting.remove(found)
                return found
            if not any(self._fits(each, timing_s, OWN_SHARE) for each in in_work):
                return None
            if not self.raced and any(self._fits(each, timing_s, HOPE) for each in self.waiting if each not in in_work):
                return None  # it has its chance after a race, and no second may be lost
            time.sleep(POLL_S)

    def _fits(self, each: Waiting, timing_s: float, share: float = 1.0) -> bool:
        share *= HOPE if self.raced else 1.0
        return share * self.needs(each) <= self._budget.left - timing_s

    def _passes(self, each: Waiting, timing_s: float, in_work: Sequence[Waiting]) -> bool:
        """Whether a form may come now: the other process does not work at it, and the asked type loses nothing."""
        if each in in_work:
            return False
        asked = sum(self.needs(other) for other in in_work if other.dtype is self._first is not each.dtype)
        return not asked or self.needs(each) + asked <= self._budget.left - timing_s

    def spare(self, each: Waiting, timing_s: float) -> float:
        """The seconds that are left after a form that was taken, the others, and the timing.

        A form of the asked type leaves seconds for the others of that type alone.
        """
        rivals = [other for other in self.waiting if each.dtype is not self._first or other.dtype is self._first]
        return self._budget.left - timing_s - self.needs(each) - sum(map(self.needs, rivals))

    def may_fit_later(self) -> bool:
        """Whether a waiting form might fit if the race is short."""
        in_work = self._in_work()
        return any(
            HOPE * (OWN_SHARE if each in in_work else 1.0) * self.needs(each) < self._budget.left
            for each in self.waiting
        )

    @contextlib.contextmanager
    def working_ahead(self) -> Iterator[None]:
        """Inside, another process works ahead if that pays; it rests while the workbench times forms."""
        self._start()
        try:
            yield
        finally:
            if self._ahead is not None:
                self._bench.still = contextlib.nullcontext
                self._ahead.end()
                self._ahead = None

    def _start(self) -> None:
        listed = [each for each in self.waiting if each.candidate.ahead is not None]
        before = sum(self.needs(each) for each in self.waiting if each not in listed)
        if not listed or self._bench.device.type != "cpu":
            return
        with contextlib.suppress(Exception):  # a model that no other process can load, or no process
            held = (*self._bench.model.parameters(), *self._bench.model.buffers())
            weights = sum(t.untyped_storage().nbytes() for t in held)  # a copy of a view takes along what it views
            if not ahead.why_not(weights, min(before, self._budget.left)):
                self._ahead = Ahead([of(self._bench, each.dtype) for each in listed if (of := each.candidate.ahead)])
                self._listed, self._bench.still = listed, self._ahead.rest
