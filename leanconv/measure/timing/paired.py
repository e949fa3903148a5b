"""Times of the same rounds compared round by round: a ratio, and how well it is known."""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from leanconv.measure.timing.latency import Timing, once_ms, quantile

# No time of one call is better known than to this share: the same code differs by more from one round to the next.
CALL_NOISE = 0.02


@dataclass(frozen=True)
class Ratio:
    """One's time over another's: the median over their common rounds, with the bounds of its confidence interval."""

    low: float
    middle: float
    high: float

    @classmethod
    def of(cls, times_ms: Sequence[float], others_ms: Sequence[float], *, sigmas: float) -> "Ratio":
        """The ratio over the rounds that both lists of times share; at least one round.

        The bounds are `sigmas` standard errors away, those of a median of normal noise: 1.253·σ/√n, σ = IQR/1.349.
        """
        logs = sorted(math.log(a / b) for a, b in zip(times_ms, others_ms, strict=False))
        middle, spread = statistics.median(logs), quantile(logs, 0.75) - quantile(logs, 0.25)
        error = sigmas * 1.253 * math.hypot(spread / 1.349, CALL_NOISE) / math.sqrt(len(logs))
        return cls(math.exp(middle - error), math.exp(middle), math.exp(middle + error))


class Turns:
    """Callables that are called in turns, each round in another random order; callables that lost may leave.

    Args:
        calls: name -> what to call. clock, primed: as `latency.interleave` has them.
    Attributes: times: name -> milliseconds of its rounds, all begun together.
    """

    def __init__(self, calls: Mapping[str, Callable[[], object]], *, clock: str = "wall", primed: bool = False) -> None:
        self.calls, self.clock, self.primed = dict(calls), clock, primed
        self.times: dict[str, list[float]] = {name: [] for name in calls}
        self._orders = random.Random(0)

    def round(self) -> None:
        """Call each that is still there once, and keep its time."""
        for name in self._orders.sample(list(self.calls), len(self.calls)):
            if self.primed:
                self.calls[name]()
            self.times[name].append(once_ms(self.calls[name], self.clock))

    def leave(self, name: str) -> None:
        del self.calls[name]

    def ratio(self, name: str, other: str, *, sigmas: float) -> Ratio:
        return Ratio.of(self.times[name], self.times[other], sigmas=sigmas)

    def timing(self, name: str) -> Timing:
        return Timing.of(self.times[name])
