"""When another engine pays."""

import pytest

from leanconv.serving.rule import (
    EAGER,
    LEAST_RACE_S,
    MOST_RACE_S,
    RACE,
    RACE_FROM_S,
    Known,
    calls_left,
    decide,
    race_budget_s,
)


@pytest.mark.parametrize(
    ("known", "left", "word"),
    [
        (Known(0.1, spent_s=0.1), 1, EAGER),  # two pictures
        (Known(0.1, spent_s=0.1), 45, RACE),  # a folder
        (Known(0.06, spent_s=0.06), 45, EAGER),
        (Known(0.06, spent_s=3.0), 45, RACE),  # the second time
        (Known(0.1, spent_s=RACE_FROM_S), 0, EAGER),  # the last picture
        (Known(0.1, spent_s=9, engine="fused", engine_s=0.02), 45, "fused"),
        (Known(0.1, spent_s=9, engine="fused", engine_s=0.02), 1, EAGER),  # two pictures are done before it is open
        (Known(0.1, engine="fused", engine_s=0.02, open_s=0.1), 1, "fused"),  # it is known to open soon
        (Known(0.1, engine="fused", engine_s=0.02, open_s=9), 45, EAGER),  # it is known to take long
        (Known(0.1, calls=20, engine="fused", engine_s=0.02), 1, "fused"),  # nobody knows the end
        (Known(0.1, spent_s=9, engine=EAGER), 1000, EAGER),
        (Known(0.1, spent_s=0.1, undecided=1), 45, EAGER),  # a race decided nothing: not again at once
        (Known(0.1, spent_s=15.0, undecided=1), 45, RACE),
        (Known(0.1, spent_s=15.0, undecided=2), 45, EAGER),
    ],
)
def test_what_runs(known, left, word):
    assert decide(known, left) == word


def test_a_race_is_paid_by_what_plain_pytorch_would_take():
    assert race_budget_s(Known(0.1), 45) == LEAST_RACE_S
    assert race_budget_s(Known(1.0), 120) == 60
    assert race_budget_s(Known(1.0), 10_000) == MOST_RACE_S
    assert race_budget_s(Known(0.1, undecided=1), 45) == 2 * LEAST_RACE_S
    assert race_budget_s(Known(0.1, undecided=999), 45) == MOST_RACE_S


@pytest.mark.parametrize(
    ("calls", "left", "done", "expected"),
    [
        (1, 45, 1, 45),
        (10, 36, 10, 36),
        (5, 40, 10, 20),  # every other picture has this shape
        (25, 3, 1, 75),  # tiles
        (7, 0, 1, 1),  # the last picture has tiles: there may be another
        (3, 0, 3, 0),
        (3, None, 3, 1),  # a watched folder
    ],
)
def test_calls_that_are_still_expected(calls, left, done, expected):
    assert calls_left(calls, left, done) == expected
