"""The time budget of one `optimize`: which engines still fit, and how long the race may take."""

import time
from collections.abc import Sequence

from leanconv.engine.race import HOPELESS, RACE_S, Entry, least_s
from leanconv.engine.trials import LATER

# The race should run this many rounds of all forms, within at most this share of the budget.
ROUNDS, TIMING_SHARE = 24, 0.25
# If the second best form's first call took this share longer than the best one's, their order is clear: the race then
# takes at most so many times what its fewest rounds take.
APART, CLEAR_RACE = 0.3, 2.0
# Limits of the pace correction. The estimates come from two idle server cores. A quick engine says little about the
# next one, so the lower limit is close to 1. An unused budget is better than one that a compiler exceeds.
SLOWEST, QUICKEST = 4.0, 0.7


class Budget:
    """A budget of `seconds` that starts now.

    `Candidate.seconds` estimates from the model what an engine needs. The time that earlier engines took corrects the
    estimate for this machine and its current load.
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

    def paced(self, estimate: float) -> float:
        """Correct an estimate of seconds by the time that earlier engines took."""
        pace = self._took / self._expected if self._expected else 1.0
        return estimate * min(SLOWEST, max(QUICKEST, pace))

    def learn(self, expected: float, took: float) -> None:
        """Record an engine that was estimated at `expected` seconds and took `took`."""
        self._expected, self._took = self._expected + expected, self._took + took

    def timing(self, entries: Sequence[Entry]) -> float:
        """Estimate the seconds of a race between these forms and one more that is as fast as the fastest.

        The trials of the winner are part of it. `entries` begins with the given model.
        """
        looks = [entry.look_s for entry in entries]
        best, least = min(looks), least_s(looks, more=1)
        wanted = ROUNDS * (best + sum(look for look in looks if look <= HOPELESS * best))
        others = sorted(looks[1:])
        if len(others) > 1 and others[1] > (1 + APART) * others[0]:
            wanted = min(wanted, CLEAR_RACE * least)
        return max(min(wanted, RACE_S, TIMING_SHARE * self.seconds), least) + self.trials(entries)

    def trials(self, entries: Sequence[Entry]) -> float:
        """Estimate the seconds in which the winner of a race is verified on further inputs."""
        looks = [entry.look_s for entry in entries]
        return len(LATER) * (looks[0] + min(looks))
