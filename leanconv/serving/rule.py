"""When another engine pays: the rule that decides between plain PyTorch, a kept engine and a race.

What lies ahead is known in part only: a folder has an end, a watched folder has none. So seconds that plain PyTorch has
taken already count as much as those that it will take. Then waiting costs no more than the purchase (ski rental).
"""

from dataclasses import dataclass

EAGER, RACE = "eager", "race"
# Seconds of plain PyTorch, over all calls and processes, from which engines are raced. Each race that decided nothing
# multiplies those to the next one by RACE_LATER, and its least budget by 2: the machine was busy.
RACE_FROM_S, RACE_LATER = 4.0, 4.0
# The race's budget: this share of the seconds that plain PyTorch would still take, within these limits.
RACE_SHARE, LEAST_RACE_S, MOST_RACE_S = 0.5, 30.0, 90.0
# A kept engine is opened if it saves more seconds than opening took the last time, and before the first time than this.
OPEN_S = 0.8


@dataclass(frozen=True)
class Known:
    """What is known of a model at one shape.

    Attributes:
        eager_s: seconds of a call in plain PyTorch.
        calls: calls in plain PyTorch in this process.
        spent_s: seconds that plain PyTorch took so far, in earlier processes too.
        engine: the fastest engine of an earlier race, or "" if there was none.
        engine_s: seconds of a call in it.
        open_s: seconds of one core that opening it took, or 0 if it was never opened.
        undecided: earlier races that had too little time to find out.
    """

    eager_s: float
    calls: int = 1
    spent_s: float = 0.0
    engine: str = ""
    engine_s: float = 0.0
    open_s: float = 0.0
    undecided: int = 0


def decide(known: Known, calls_left: float) -> str:
    """Return EAGER, RACE, or the name of the kept engine. `calls_left`: calls at this shape that are still expected."""
    if known.engine == EAGER or calls_left < 1:
        return EAGER
    if known.engine:
        saved_s = (known.calls + calls_left) * (known.eager_s - known.engine_s)
        return known.engine if saved_s > (known.open_s or OPEN_S) else EAGER
    return RACE if known.spent_s + calls_left * known.eager_s >= race_from_s(known.undecided) else EAGER


def race_from_s(undecided: int) -> float:
    """Seconds of plain PyTorch from which engines are raced, after so many races that decided nothing."""
    return RACE_FROM_S * RACE_LATER ** min(undecided, 8)


def race_budget_s(known: Known, calls_left: float) -> float:
    """Seconds that a race may take."""
    least_s = LEAST_RACE_S * 2 ** min(known.undecided, 8)
    return min(MOST_RACE_S, max(least_s, RACE_SHARE * calls_left * known.eager_s))


def calls_left(calls: int, left: float | None, done: float) -> float:
    """Calls that are still expected at a shape.

    Args:
        calls: calls at this shape so far.
        left: pictures after the present one, or None if nobody knows.
        done: pictures so far, with the present one.
    """
    if left is None:
        return 1.0
    more = 1.0 if calls > done else 0.0  # the tiles of a picture have one shape: perhaps there is another
    return max(more, calls / max(1.0, done) * left)
