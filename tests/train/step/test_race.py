"""The race of modes: of those that agree, the fastest wins, and the simplest of those that are as fast."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from leanconv.measure import Timing
from leanconv.train.step import race
from leanconv.train.step.choices import StepChoice
from leanconv.train.step.modes import Mode
from leanconv.train.step.race import TIE, _Entry, _winner
from leanconv.train.step.trial import Difference


@pytest.mark.parametrize(
    ("ratios", "wins"),
    [([1.0, 1.5, 2.5, 1.2], 2), ([1.0, 2.5 / (1 + TIE / 2), 2.5], 1), ([1.0, None, None], 0)],
    ids=["the fastest", "the simplest of two alike", "the given one where nothing is faster"],
)
def test_who_wins(ratios, wins):
    entries = []
    for place, ratio in enumerate(ratios):
        row = StepChoice(f"mode{place}", timing=Timing.of([10.0 / (ratio or 1.0)]), ratio=ratio or 1.0)
        row.note = "" if ratio else "not faster than eager beyond noise"
        entries.append(_Entry(SimpleNamespace(), row, 0.01))
    winner = _winner(entries)
    assert entries.index(winner) == wins
    assert winner.row.note.startswith("chosen")
    assert sum(entry.row.note.startswith("chosen") for entry in entries) == 1


@pytest.mark.parametrize(
    ("given", "other", "ratio", "wins"),
    [(0.5, 0.5, 0.9, 0), (2.7, 0.5, 0.9, 1), (2.7, 2.0, 0.9, 0), (2.7, 2.0, 2.0, 1)],
    ids=["slower", "slower and right", "slower and less wrong", "faster and less wrong"],
)
def test_a_given_step_that_is_too_far_off_gives_way_to_one_that_is_not(monkeypatch, given, other, ratio, wins):
    entries = [
        _Entry(SimpleNamespace(changes=nullcontext), StepChoice(name), 1.0, worst)
        for name, worst in (("bfloat16", given), ("kernels bfloat16", other))
    ]
    clock = iter([10.0, 10.0 / ratio] * 100)
    monkeypatch.setattr(race, "once_ms", lambda step: next(clock))
    monkeypatch.setattr(race.random, "Random", lambda seed: SimpleNamespace(sample=lambda every, count: every))
    race._time(None, entries, 0.0, lambda share: None)
    assert entries.index(_winner(entries)) == wins


def test_one_that_agrees_comes_before_a_faster_one_that_is_as_far_off_as_the_given_one():
    rows = (("bfloat16", 2.7, 1.0), ("channels_last bfloat16", 2.7, 3.0), ("kernels bfloat16", 0.5, 2.0))
    entries = [
        _Entry(SimpleNamespace(), StepChoice(name, timing=Timing.of([1.0]), ratio=ratio), 1.0, worst)
        for name, worst, ratio in rows
    ]
    assert entries.index(_winner(entries)) == 2
    assert "no farther off" in entries[1].row.note


@pytest.mark.parametrize(
    ("given", "only", "worst", "taken"),
    [
        (2.7, True, 2.0, True),
        (2.7, True, 3.0, False),
        (math.inf, True, math.inf, False),
        (math.inf, True, 1e9, False),
        (math.inf, True, 0.5, True),
        (2.7, False, 2.0, False),
    ],
    ids=["less wrong", "more", "not finite", "than not finite", "right", "a step in float32 that differs from itself"],
)
def test_what_may_race_beside_a_given_step_that_is_too_far_off(monkeypatch, given, only, worst, taken):
    monkeypatch.setattr(race, "Forward", lambda *given: SimpleNamespace(changes=nullcontext))
    monkeypatch.setattr(race, "once_ms", lambda step: 1.0)

    class Stub(SimpleNamespace):
        def __call__(self, forward):
            pass

        def difference(self, forward):
            return Difference(0.0, 0.0, worst, "0.weight")

    stub, row = Stub(model=None, args=(), kwargs={}), StepChoice("channels_last")
    first = _Entry(SimpleNamespace(), StepChoice("eager"), 1.0, given)
    found = race._prepared(stub, Mode(("channels_last",)), row, first, only)
    assert (found is not None) == taken
    assert row.note.startswith("differs") == (not taken)
