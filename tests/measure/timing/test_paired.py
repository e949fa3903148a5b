"""Ratios of times that were taken in the same rounds: what hits both alike is no noise, the bounds keep their word."""

import random

import pytest

from leanconv.measure.timing import paired
from leanconv.measure.timing.paired import Ratio, Turns


def test_a_ratio_is_of_common_rounds_and_bounded_as_its_noise_says():
    draw, inside = random.Random(0), 0
    for _ in range(300):
        load = [draw.lognormvariate(0.0, 0.5) for _ in range(40)]  # hits both alike
        a, b = ([x * y * draw.lognormvariate(0.0, 0.04) for x in load] for y in (1.1, 1.0))
        seen = Ratio.of([*a, 100.0], b, sigmas=2.0)
        inside += seen.low <= 1.1 <= seen.high
        assert seen.high / seen.low < 1.12
    assert inside >= 270


@pytest.mark.parametrize("primed", [False, True])
def test_turns_go_on_without_those_who_left(monkeypatch, primed):
    called = []
    monkeypatch.setattr(paired, "once_ms", lambda call, clock="wall": call() or 1.0)
    turns = Turns({name: (lambda name=name: called.append(name)) for name in "abc"}, primed=primed)
    for i in range(12):
        turns.round()
        if i == 5:
            turns.leave("b")
    assert {name: len(times) for name, times in turns.times.items()} == {"a": 12, "b": 6, "c": 12}
    assert len(called) == 30 * (1 + primed)
    assert turns.ratio("a", "b", sigmas=1.0).middle == 1.0
    assert turns.timing("a").rounds == 12
    orders = {tuple(called[i : i + 3]) for i in range(0, 18, 3)} if not primed else {0, 1}
    assert len(orders) > 1
