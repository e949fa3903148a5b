"""Interleaved timing, A/B/A/B in one process: a busy machine slows every candidate alike."""

import functools
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from leanconv.errors import BadInput


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one candidate over `rounds` calls: median, 95th percentile, interquartile range."""

    median_ms: float
    p95_ms: float
    iqr_ms: float
    rounds: int

    @classmethod
    def of(cls, times_ms: list[float]) -> "Timing":
        """The summary of single measurements; at least one."""
        ordered = sorted(times_ms)
        spread = quantile(ordered, 0.75) - quantile(ordered, 0.25)
        return cls(statistics.median(ordered), quantile(ordered, 0.95), spread, len(ordered))

    def to_dict(self) -> dict[str, float]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median_ms:.3g} ms (IQR {self.iqr_ms:.2g}, {self.rounds} rounds)"


def quantile(ordered: list[float], q: float) -> float:
    """The q-quantile of ascending numbers, linearly interpolated."""
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@functools.cache
def has_accelerator() -> bool:
    """Whether a device runs asynchronously, after the call that started its work returns."""
    return torch.cuda.is_available() or torch.accelerator.is_available()


def synchronize() -> None:
    """Wait until the accelerator, if this process uses one, is idle."""
    if torch.cuda.is_available():
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    elif torch.accelerator.is_available():
        torch.accelerator.synchronize()


CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.thread_time,
    "process": time.process_time,
}


# The clocks' names in reports.
CLOCK_WORDS = {"wall": "wall time", "cpu": "this thread's computing time", "process": "computing time"}


def once_ms(call: Callable[[], object], clock: str = "wall") -> float:
    """Time of one call in ms, the device's queue emptied before and after."""
    now, waits = CLOCKS[clock], has_accelerator()
    if waits:  # the check takes 3 µs, as long as a small kernel
        synchronize()
    start = now()
    call()
    if waits:
        synchronize()
    return (now() - start) * 1e3


def check_clock(clock: str) -> None:
    """Raises BadInput for an unknown clock, and for a CPU clock with several threads: it sees a part or their sum."""
    if clock not in CLOCKS:
        raise BadInput(f"unknown clock {clock!r}; known: {', '.join(CLOCKS)}")
    if clock != "wall" and torch.get_num_threads() != 1:
        raise BadInput(
            f"clock {clock!r} is for one thread, torch has {torch.get_num_threads()}: torch.set_num_threads(1) first"
            " (on the command line: --threads 1)"
        )


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    budget_s: float = 10.0,
    warmup: int = 2,
    min_rounds: int = 5,
    max_rounds: int = 200,
    clock: str = "wall",
    primed: bool = False,
    on_round: Callable[[float], object] | None = None,
) -> dict[str, Timing]:
    """Time every candidate once a round, in another order each round: load from neighbours hits all alike.

    The orders are random, from a fixed seed. In a rotation each candidate would always follow the same one, and meet
    that one's caches and allocator.

    Args:
        candidates: name -> callable; the caller sets gradients, dtype and layout.
        budget_s: no new round starts once these seconds (warm-up not counted) are spent and `min_rounds` are done.
        warmup: untimed rounds before the first timed one.
        clock: "wall"; "cpu" for this thread's CPU time, which excludes preemption: better on a crowded machine, for
            work in one thread; "process" for the process's CPU time, if a runtime works in one thread of its own.
        primed: call each candidate once, untimed, right before timing it: its code and data are then in the caches.
            Without, the caches hold the previous candidate's.
        on_round: called after every round with the fraction of the measurement that is done, 0..1.
    Returns: name -> Timing, in the order given. Raises: BadInput for no candidates or fewer than one round.
    """
    if not candidates:
        raise BadInput("nothing to time: no candidates were given")
    if min_rounds < 1 or max_rounds < min_rounds or warmup < 0:
        raise BadInput(f"cannot time min_rounds={min_rounds}, max_rounds={max_rounds}, warmup={warmup}")
    check_clock(clock)
    names, orders = list(candidates), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warmup):
        for call in candidates.values():
            once_ms(call)
    start = time.perf_counter()
    for done in range(max_rounds):
        for name in orders.sample(names, len(names)):
            if primed:
                candidates[name]()
            times[name].append(once_ms(candidates[name], clock))
        spent = (time.perf_counter() - start) / budget_s if budget_s > 0 else 1.0
        if on_round is not None:
            by_budget = min(spent, (done + 1) / min_rounds)  # the budget ends it only once min_rounds are done
            on_round(min(1.0, max(by_budget, (done + 1) / max_rounds)))
        if done + 1 >= min_rounds and spent >= 1:
            break
    return {name: Timing.of(times[name]) for name in names}
