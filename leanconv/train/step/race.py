"""The race: prepare and check each mode within the budget, time those that agree in turns, take the fastest."""

import math
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from leanconv.errors import LeanconvError, error_line
from leanconv.measure.timing.latency import Timing, once_ms
from leanconv.measure.timing.paired import Ratio
from leanconv.measure.timing.training import peak_bytes
from leanconv.train.step.choices import StepChoice
from leanconv.train.step.modes import BFLOAT16, COMPILE, Forward, Mode, uncompiled, why_not_compile
from leanconv.train.step.trial import Trial

# Rounds of the race: the fewest, and the most. A mode that takes this many times the fastest at first is not timed.
FEW_ROUNDS, MOST_ROUNDS, HOPELESS = 5, 40, 2.0
LOOKS = 2  # the faster one counts
# The share of the budget in which modes are prepared. The rest is for timing.
PREPARE_SHARE = 0.8
# A mode is faster if the ratio is above 1 by this many standard errors. Of modes within TIE, the simplest is taken.
SIGMAS, TIE = 3.0, 0.02
# Where bfloat16 as given is further off than is allowed, so may a mode be that is off by up to this many times as much.
ROOM = 1.1
# An estimate of the seconds that torch.compile takes for forward and backward, and for each layer with parameters. A
# mode that takes longer costs the budget that much; one that takes less leaves it.
COMPILE_S, COMPILE_LAYER_S = 10.0, 0.7
# Steps shorter than this are timed in warm caches: the other modes' data would else be in them.
PRIMED_S = 0.2
# Peak memory takes one more step under the profiler; beyond the budget only steps shorter than this are measured.
QUICK_S = 0.5

OnPart = Callable[[str, float], object]


@dataclass
class _Entry:
    """A mode that agrees, its row, and the seconds of its first step after those of its preparation.

    worst: its largest error over what is allowed. Above 1 is bfloat16 as given, and what is no further off than it.
    """

    forward: Forward
    row: StepChoice
    look_s: float
    worst: float = 0.0


def race(
    trial: Trial, budget_s: float, *, bfloat16: bool, only: bool = False, on_part: OnPart
) -> tuple[list[StepChoice], Forward]:
    """The rows of the table, and the mode to take, compiled if it is to be.

    Args:
        trial: the step; its model is protected from changes by the caller.
        budget_s: seconds. Modes that no longer fit are left out, and their rows say so.
        bfloat16: whether modes may compute in it; only: whether all do. The first of them is "as given" then.
        on_part: called with what is done now, and the share of the budget that is spent.
    """
    start = time.perf_counter()

    def spent() -> float:
        return time.perf_counter() - start

    rows: list[StepChoice] = []
    entries: list[_Entry] = []
    for mode in _modes(trial, entries, bfloat16, only):
        on_part(mode.name, min(1.0, spent() / budget_s) if budget_s > 0 else 1.0)
        rows.append(StepChoice(mode.name))
        needed = _seconds(mode, trial, entries)
        if entries and spent() + needed > PREPARE_SHARE * budget_s:
            rows[-1].note = f"left out: some {needed:.0f} s more than the budget allows"
        elif entry := _prepared(trial, mode, rows[-1], entries[0] if entries else None, only):
            entries.append(entry)
    if not bfloat16 and not trial.half:
        rows.append(StepChoice(BFLOAT16, note="left out: not asked for (dtype=torch.bfloat16; amp=auto in a recipe)"))
    _time(trial, entries, max(0.0, budget_s - spent()), lambda share: on_part("timing", share))
    winner = _winner(entries)
    winner.row.chosen = True
    for entry in entries if spent() < budget_s or entries[0].look_s < QUICK_S else []:
        with entry.forward.changes():
            entry.row.peak_bytes = peak_bytes(lambda e=entry: trial(e.forward), _device(trial).type)  # type: ignore[misc]
    return rows, winner.forward


def _modes(trial: Trial, entries: list[_Entry], bfloat16: bool, only: bool) -> Iterator[Mode]:
    """All modes without torch.compile, then those of them that were fastest in each number type, compiled."""
    types = [half for half in (False, True) if half == only or (half and bfloat16)]
    yield from (mode for mode in uncompiled(trial.model, bfloat16=bfloat16) if (BFLOAT16 in mode) in types)
    for half in types:
        looks = {entry.forward.mode: entry.look_s for entry in entries if (BFLOAT16 in entry.forward.mode) == half}
        if looks:
            yield min(looks, key=looks.__getitem__).plus(COMPILE)


def _seconds(mode: Mode, trial: Trial, entries: list[_Entry]) -> float:
    """About how long a mode's preparation takes."""
    step_s = entries[0].look_s if entries else 0.0
    times = 2 if trial.random else 1  # with and without dropout
    return (3 + LOOKS) * step_s + (times * compile_s(trial.model) if COMPILE in mode else 0.0)


def compile_s(model: nn.Module) -> float:
    """About the seconds that torch.compile takes for forward and backward."""
    layers = sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())
    return COMPILE_S + COMPILE_LAYER_S * layers


def _prepared(trial: Trial, mode: Mode, row: StepChoice, given: _Entry | None, only: bool) -> _Entry | None:
    """Run a mode and compare it; None, and a note in the row, if it fails or does not agree.

    given: the first one. only: all are in bfloat16; no farther off than a finite first one is good enough then.
    """
    start = time.perf_counter()
    if COMPILE in mode and (reason := why_not_compile(_device(trial))):
        row.note = f"left out: {reason}"
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            forward = Forward(trial.model, mode, (trial.args, trial.kwargs)) if mode.words else trial.given
            with forward.changes():
                seen = trial.difference(forward)
                trial(forward)
                look_s = min(once_ms(lambda: trial(forward)) for _ in range(LOOKS)) / 1e3
    except (LeanconvError, KeyboardInterrupt):
        raise
    except Exception as error:
        if given is None:
            raise
        row.note = f"does not run: {error_line(error)}"
        return None
    row.prepare_s, row.loss, row.gradient = time.perf_counter() - start, seen.loss, seen.gradient
    enough = given is None or seen.agrees or (only and seen.worst <= ROOM * given.worst < math.inf)
    if not enough or (given is None and not seen.agrees):
        row.note = f"differs: {seen.name} by {seen.worst:.2g} times what is allowed"
    return _Entry(forward, row, look_s, seen.worst) if enough else None


def _time(trial: Trial, entries: list[_Entry], seconds: float, on_part: Callable[[float], object]) -> None:
    """Time the modes in turns, in a random order each round; those that were hopeless at first are left out."""
    best = min(entry.look_s for entry in entries)
    given, *others = entries
    racing = [given, *(entry for entry in others if entry.look_s <= HOPELESS * best)]
    for entry in others:
        if entry not in racing:
            entry.row.note = f"slow: {1e3 * entry.look_s:.3g} ms at the first look; not timed further"
    times: dict[str, list[float]] = {entry.row.mode: [] for entry in racing}
    start, orders = time.perf_counter(), random.Random(0)
    if len(racing) == 1:  # nothing to compare it with
        given.row.timing, given.row.ratio = Timing.of([1e3 * given.look_s]), 1.0
        return
    for done in range(MOST_ROUNDS):
        share = (time.perf_counter() - start) / seconds if seconds > 0 else 1.0
        if done >= FEW_ROUNDS and share >= 1:
            break
        on_part(min(1.0, max(share, done / MOST_ROUNDS)))
        for entry in orders.sample(racing, len(racing)):
            with entry.forward.changes():
                if entry.look_s < PRIMED_S:
                    trial(entry.forward)
                times[entry.row.mode].append(once_ms(lambda e=entry: trial(e.forward)))  # type: ignore[misc]
    for entry in racing:
        own = times[entry.row.mode]
        entry.row.timing = Timing.of(own)
        ratio = Ratio.of(times[given.row.mode], own, sigmas=SIGMAS)
        entry.row.ratio = ratio.middle
        if entry is not given and (given.worst <= 1 or entry.worst > 1) and ratio.low <= 1:
            entry.row.note = f"not faster than {given.row.mode} beyond noise"


def _winner(entries: list[_Entry]) -> _Entry:
    """The simplest of the fastest; the given form if nothing is faster, or nothing else agrees."""
    given, *others = entries
    faster = [entry for entry in others if entry.row.timing and not entry.row.note]
    if not faster:
        why = "nothing was faster beyond noise" if others else "no other mode agreed or had time"
        given.row.note = "; ".join(filter(None, [f"chosen: {why}", given.row.note]))
        return given
    if any(entry.worst <= 1 for entry in faster):  # right ones come before those that are as far off as the given one
        for entry in faster:
            if entry.worst > 1:
                entry.row.note = f"no farther off than {given.row.mode}; others agree"
        faster = [entry for entry in faster if entry.worst <= 1]
    best = max(entry.row.ratio or 1.0 for entry in faster)
    winner = next(entry for entry in faster if (1 + TIE) * (entry.row.ratio or 1.0) >= best)
    given.row.note = "; ".join(filter(None, ["as given", given.row.note]))
    for entry in faster:
        entry.row.note = "chosen" if entry is winner else "slower than the best"
    return winner


def _device(trial: Trial) -> torch.device:
    return trial.parameters[0].device
