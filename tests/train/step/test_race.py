"""The race of modes: of those that agree, the fastest wins, and the simplest of those that are as fast."""

from types import SimpleNamespace

import pytest

from leanconv.measure import Timing
from leanconv.train.step.choices import StepChoice
from leanconv.train.step.race import TIE, _Entry, _winner


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
