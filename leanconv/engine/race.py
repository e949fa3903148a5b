"""The race: a heat times all correct forms in turns, then a final compares the best ones."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanconv.engine.candidate import ModelForm
from leanconv.engine.choices import TIE, Choice
from leanconv.engine.workbench import Workbench
from leanconv.measure import interleave
from leanconv.measure.timing.latency import once_ms
from leanconv.measure.timing.paired import Ratio, Turns

RACE_S = 10.0  # the most seconds of the race between short calls
MORE = 1.5  # the most of the race between long ones, times what its fewest rounds take
RACE_SHARE = 0.8  # the most of the remaining budget that the race takes
HEAT_SHARE = 0.3  # the heat's share of the race's seconds
HEAT_ROUNDS = 20  # the most rounds of the heat
SHORT_HEAT_ROUNDS = 8  # a heat with time for fewer rounds saves warm-up calls
# A heat with time for fewer rounds than LONG_ROUNDS has calls of a second or so: they vary little and need no warm-up.
# Forms within NEAR of the fastest first call take part, and those within LONG_WITHIN of the best reach the final.
LONG_ROUNDS, NEAR, LONG_WITHIN = 3, 1.5, 0.15
FINAL_ROUNDS = 3  # the fewest rounds of the final, after which who is out leaves
# A final that is open at its end goes on to so many rounds, for at most so many seconds more, if the budget has them: 7
# rounds of 220 ms left a form of .967 times the best one's speed undecided.
OPEN_ROUNDS, OPEN_S = 24, 20.0
# Between long calls, the given model meets nobody in the final if it takes CLEAR times as long as the best in the heat.
CLEAR = 1.5
# If fewer than FEW_ROUNDS rounds fit into the heat, it drops forms whose first call took HOPELESS times the fastest.
FEW_ROUNDS, HOPELESS = 20, 2.5
LOOKS_SHARE = 0.3  # the share of the heat's seconds that repeated first calls may take
# Candidates whose lower quartile is within 10 % of the best reach the final. If all of them are slower than the given
# model by more than that, there is no final.
WITHIN = 0.10
# The most rounds and seconds of the final between two checks, the most rounds, the standard errors of a decision.
CHECK_EVERY, CHECK_S, MOST_ROUNDS, SIGMAS = 16, 1.0, 1600, 3.0
# Rounds shorter than this are measured in warm caches. Otherwise the cache state that other forms leave dominates. It
# is 5/6 of a small layer's call in ONNX Runtime. The first limit applies to first calls, which may be slow; the second
# one applies to the heat's medians.
PRIMED_S, PRIMED_FINAL_S = 0.1, 0.03
MODEL = "0"  # the given model's key among the turns; the others follow in table order, simplest first


@dataclass
class Entry:
    """A correct form, its row in the table, the seconds of its first timed call, and its number type."""

    row: Choice
    form: ModelForm
    any_shape: bool
    look_s: float
    dtype: torch.dtype | None = None


def race(bench: Workbench, entries: Sequence[Entry], deadline: float, on_part: Callable[[float], object]) -> Entry:
    """Time the correct forms and choose one. `entries` begins with the given model; the rows state the reasons."""
    given = entries[0]
    looks = [entry.look_s for entry in entries]
    seconds = min(max(RACE_S, MORE * least_s(looks)), max(0.0, deadline - time.perf_counter()) * RACE_SHARE)
    finalists = _heat(bench, entries, HEAT_SHARE * seconds, lambda part: on_part(HEAT_SHARE * part))
    winner = given
    if len(finalists) > 1:
        left = RACE_SHARE * (deadline - time.perf_counter()) - (1 - HEAT_SHARE) * seconds
        more = min(OPEN_S, max(0.0, left))
        winner = _final(bench, [given, *finalists[1:]], seconds, more, lambda part: on_part(max(part, HEAT_SHARE)))
    winner.row.chosen = True
    given.row.note = "chosen: nothing was faster beyond noise" if winner is given else "as given"
    if bench.obstacle:
        given.row.note = f"chosen: {bench.obstacle}, so nothing can be verified against it"
    return winner


def least_s(looks: Sequence[float], more: int = 0) -> float:
    """Estimate the seconds of the shortest race between the given model, whose call is the first, and other forms.

    `more`: how many forms, as fast as the fastest one, will join.
    """
    given, *others = looks
    best = min(looks)
    near = [look for look in others if look <= NEAR * best] + more * [best]
    final = [look for look in near if look <= (1 + LONG_WITHIN) * best]
    met = 0.0 if given > CLEAR * best else given
    return given + sum(near) + (FINAL_ROUNDS * (met + sum(final)) if final else 0.0)


def _heat(
    bench: Workbench, entries: Sequence[Entry], seconds: float, on_part: Callable[[float], object]
) -> list[Entry]:
    """Time all forms in turns. Returns the given model and the challengers that may still win."""
    given, hopeful = entries[0], list(entries)
    if seconds < FEW_ROUNDS * sum(entry.look_s for entry in entries):
        _look_again(bench, entries, LOOKS_SHARE * seconds)
        best_s = min(entry.look_s for entry in entries)
        long = seconds < LONG_ROUNDS * sum(entry.look_s for entry in entries if entry.look_s <= HOPELESS * best_s)
        most_s = (NEAR if long else HOPELESS) * best_s
        hopeful = [entry for entry in entries if entry is given or entry.look_s <= most_s]
    for entry in entries:
        if entry not in hopeful:
            entry.row.note = f"slow: {entry.look_s * 1e3:.3g} ms at the first look; not timed further"
    round_s = sum(entry.look_s for entry in hopeful)
    short, long = seconds < SHORT_HEAT_ROUNDS * round_s, seconds < LONG_ROUNDS * round_s
    within = LONG_WITHIN if long else WITHIN
    times = interleave(
        _calls(bench, hopeful),
        budget_s=max(seconds, 0.05),
        warmup=0 if long else 1 if short else 2,
        min_rounds=1 if long else 3 if short else 5,
        max_rounds=HEAT_ROUNDS,
        on_round=on_part,
        clock=bench.clock,
        primed=not short and round_s < PRIMED_S,
    )
    for entry, timing in zip(hopeful, times.values(), strict=True):
        entry.row.timing, entry.row.ratio = timing, times[MODEL].median_ms / timing.median_ms
    own, *rest = times.values()
    quick = [timing.median_ms - timing.iqr_ms / 2 for timing in rest]  # a busy machine distorts so few medians
    best, found = min((timing.median_ms for timing in rest), default=math.inf), [given]
    for entry, low in zip(hopeful[1:], quick, strict=True):
        if min(quick) > (1 + within) * own.median_ms:
            entry.row.note = "slower than the given model"
        elif low > (1 + within) * best:
            entry.row.note = "slower than the best"
        else:
            found.append(entry)
    return found


def _look_again(bench: Workbench, entries: Sequence[Entry], seconds: float) -> None:
    """Time up to two more calls of each form whose first call was slow.

    An engine may plan its memory in the first call. ONNX Runtime took 35 ms for it and 7.5 ms for the next.
    """
    best_s, until = min(entry.look_s for entry in entries), time.perf_counter() + seconds
    for entry in [entry for entry in entries[1:] if entry.look_s > HOPELESS * best_s]:
        (call,) = _calls(bench, [entry]).values()
        for _ in range(2):
            if time.perf_counter() + entry.look_s < until:
                entry.look_s = min(entry.look_s, once_ms(call, bench.clock) / 1e3)


def _final(
    bench: Workbench, entries: Sequence[Entry], seconds: float, more: float, on_part: Callable[[float], object]
) -> Entry:
    """Time the finalists and the given model in turns, until the fastest is known or the time is spent.

    `more`: seconds that a final of few rounds may take longer while it is open.
    """
    heat_s = [entry.row.timing.median_ms / 1e3 for entry in entries if entry.row.timing]
    round_s, rest = sum(heat_s), (1 - HEAT_SHARE) * seconds
    turns = Turns(_calls(bench, entries), clock=bench.clock, primed=round_s < min(PRIMED_FINAL_S, seconds / 16))
    looks = [entry.look_s for entry in entries]
    if FINAL_ROUNDS * round_s > min(CHECK_S, rest) and all(s[0] > CLEAR * min(s) for s in (heat_s, looks)):
        turns.leave(MODEL)
        round_s -= heat_s[0]
    met = MODEL in turns.calls
    start, rounds = time.perf_counter(), 0
    every = max(1, min(CHECK_EVERY, int(CHECK_S / round_s))) if round_s > 0 else CHECK_EVERY
    while True:
        turns.round()
        rounds += 1
        if not met:
            turns.times[MODEL].append(1e3 * heat_s[0])
        taken = time.perf_counter() - start
        spent = taken / rest if seconds > 0 else 1.0
        on_part(min(1.0, max(spent, rounds / MOST_ROUNDS)))
        # One call of the last one confirms the heat, but a call that another process disturbed refutes nothing.
        alone = next(iter(turns.calls)) if len(turns.calls) == 1 else ""
        least = FINAL_ROUNDS if met or not alone else 2 * FINAL_ROUNDS
        enough = rounds >= least or (not met and alone and beats(turns.ratio(MODEL, alone, sigmas=SIGMAS)))
        few = rounds < OPEN_ROUNDS and taken < rest + more
        last = rounds >= MOST_ROUNDS or (spent >= 1 and enough and not few)
        if last or (enough and rounds % every == 0):
            best = min((name for name in turns.calls if name != MODEL), key=lambda name: turns.timing(name).median_ms)
            if last or _known(turns, best):
                return _verdict(turns, best, entries)


def _known(turns: Turns, best: str) -> bool:
    """Whether the winner is known. TIE: the relative difference below which two forms count as equally fast.

    It is known if the given model beats the best challenger by more than TIE. Otherwise two conditions must hold. The
    best one is known to be faster or slower than the given model. No other challenger may still beat it by more than
    TIE. Challengers that are slower than the best one by more than TIE leave the final.
    """
    is_open = False
    for name in [name for name in turns.calls if name != best]:
        seen = turns.ratio(name, best, sigmas=SIGMAS)
        if seen.low > 1 + TIE:
            turns.leave(name)
        elif seen.high < 1 / (1 + TIE) and name == MODEL:
            return True
        else:
            is_open = is_open or (seen.low < 1 < seen.high / (1 + TIE) if name == MODEL else seen.low < 1 / (1 + TIE))
    return not is_open


def _verdict(turns: Turns, best: str, entries: Sequence[Entry]) -> Entry:
    """Return the simplest challenger that ties with the best one, or the given model if none beats it."""
    by_name = dict(zip(turns.times, entries, strict=True))
    alike = [name for name in turns.calls if turns.ratio(name, best, sigmas=SIGMAS).middle <= 1 + TIE]
    winner = next(name for name in alike if name != MODEL)
    won = beats(turns.ratio(MODEL, best, sigmas=SIGMAS))
    for name, entry in by_name.items():
        if name == MODEL:
            continue
        entry.row.confirmed = turns.ratio(MODEL, name, sigmas=SIGMAS).middle
        speed = f"{entry.row.confirmed:.2f}x the given model's speed in the final"
        leader = by_name[winner].row.label
        if name == winner:
            entry.row.note = f"chosen: {speed}" if won else f"not faster than the given model beyond noise: {speed}"
        elif name in alike:
            entry.row.note = f"as fast as {leader}, which is simpler: {speed}"
        else:
            entry.row.note = f"slower than {leader}: {speed}"
    return by_name[winner] if won else entries[0]


def beats(given: Ratio) -> bool:
    """Whether a form beats the given model beyond noise. `given` is the given model's time over the form's."""
    return given.low > 1 and given.middle > 1 + TIE


def _calls(bench: Workbench, entries: Sequence[Entry]) -> dict[str, Callable[[], object]]:
    def calling(form: ModelForm) -> Callable[[], object]:
        args, kwargs = bench.call()

        def once() -> Any:
            with torch.no_grad():
                return form(*args, **kwargs)

        return once

    return {str(i): calling(entry.form) for i, entry in enumerate(entries)}
