"""The seconds of one `optimize`: which engine may still be prepared, and what the race needs."""

import time
from collections.abc import Sequence

from leanconv.engine.candidate import Candidate
from leanconv.engine.race import HOPELESS, RACE_S, Entry
from leanconv.engine.workbench import Workbench

# Rounds of all forms that the race should have, and the share of the budget that it may take for them at the most.
ROUNDS, TIMING_SHARE = 24, 0.25
# How far this machine may be from the estimates, which were taken on two idle cores of a server. One engine that was
# quick says little of the next: a budget is rather left unused than exceeded by a compiler.
SLOWEST, QUICKEST = 4.0, 0.7


class Budget:
    """`seconds` from now on.

    What an engine needs is estimated from the model (`Candidate.seconds`), and corrected by what the engines before it
    needed on this machine, whatever else runs on it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.start = time.perf_counter()
        self.deadline = self.start + seconds
        self._expected = self._took = 0.0

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        return max(0.0, self.deadline - time.perf_counter())

    def needs(self, candidate: Candidate, bench: Workbench) -> float:
        """The seconds that its preparation will take, about."""
        pace = self._took / self._expected if self._expected else 1.0
        return candidate.seconds(bench) * min(SLOWEST, max(QUICKEST, pace))

    def learn(self, expected: float, took: float) -> None:
        """An engine was to take `expected` seconds by its own estimate, and took others."""
        self._expected, self._took = self._expected + expected, self._took + took

    def timing(self, entries: Sequence[Entry]) -> float:
        """The seconds that the race of these forms needs, and of one more that is as fast as the fastest."""
        looks = [entry.look_s for entry in entries]
        best = min(looks)
        wanted = ROUNDS * (best + sum(look for look in looks if look <= HOPELESS * best))
        return min(wanted, RACE_S, TIMING_SHARE * self.seconds)
