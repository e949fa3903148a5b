"""The race, with forms whose times are drawn: who is chosen, how often wrongly, and when it is known."""

import itertools
import random
import time
from types import SimpleNamespace

import pytest
import torch

from leanconv.engine import race
from leanconv.engine.choices import Choice, faster
from leanconv.engine.race import Entry
from leanconv.measure import Timing
from leanconv.measure.timing import latency, paired

FAR = time.perf_counter() + 1e6


@pytest.fixture
def held(monkeypatch):
    """`held(medians, noise, seed)`: the race of such forms; (the winner's place, rounds of the final of each)."""
    monkeypatch.setattr(latency, "once_ms", lambda call, clock="wall": call())
    monkeypatch.setattr(paired, "once_ms", lambda call, clock="wall": call())
    bench = SimpleNamespace(device=torch.device("cpu"), obstacle="", clock="wall")

    def run(forms, noise=0.05, seed=0, deadline=FAR, call_s=0.0):
        draw, made = random.Random(seed), []

        def calling(_, entries):
            made.append([0] * len(entries))
            count = made[-1]

            def call(i, form):
                count[i] += 1
                time.sleep(call_s * form if call_s else 0.0)
                return (form() if callable(form) else form) * draw.lognormvariate(0.0, noise)

            return {str(i): (lambda i=i, e=e: call(i, e.form)) for i, e in enumerate(entries)}

        monkeypatch.setattr(race, "_calls", calling)
        looks = [call_s * form if call_s else 1e-3 for form in forms]
        entries = [Entry(Choice(f"form{i}"), form, True, look) for i, (form, look) in enumerate(zip(forms, looks))]
        winner = race.race(bench, entries, deadline, lambda part: None)
        assert [entry.row.chosen for entry in entries] == [entry is winner for entry in entries]
        assert all(entry.row.note for entry in entries)
        heats.append(made[0])
        return entries.index(winner), made[1] if len(made) > 1 else []

    run.heats = heats = []
    return run


def test_calls_of_seconds_cost_what_the_budget_expects(held):
    """One round in the heat, at most three in the final: a call of the network takes seconds."""
    forms = [1.8, 1.2, 1.7, 1.02, 1.0, 1.05]
    winner, final = held(forms, noise=0.01, deadline=time.perf_counter(), call_s=0.02)
    assert winner in (3, 4)  # as fast within the noise of so few calls
    assert held.heats == [[1, 1, 1, 1, 1]]  # 1.7 is too far from 1.0 at the first look
    spent = 1.8 + 1.2 + 1.02 + 1.0 + 1.05 + sum(n * t for n, t in zip(final, [1.8, 1.02, 1.0, 1.05], strict=True))
    assert spent <= race.least_s(forms)


def test_between_long_calls_a_given_model_that_is_far_behind_is_called_once(held):
    winner, final = held([1.8, 1.01, 1.0], noise=0.01, deadline=time.perf_counter(), call_s=0.02)
    assert winner in (1, 2)
    assert final == [0, 3, 3]
    assert held([1.4, 1.01, 1.0], noise=0.01, deadline=time.perf_counter(), call_s=0.02)[1] == [3, 3, 3]


def test_of_long_calls_one_that_is_alone_is_confirmed_in_one(held):
    assert held([1.8, 1.0, 1.3], noise=0.01, deadline=time.perf_counter(), call_s=0.02) == (1, [0, 1])


def test_between_calls_of_a_second_what_is_clear_is_known_after_three_rounds(held):
    assert held([1400.0, 1000.0, 1300.0], noise=0.01) == (1, [3, 3])


def test_a_final_of_few_rounds_goes_on_while_it_is_open_and_the_budget_lasts(held, monkeypatch):
    """The race's own seconds have room for few rounds. Each calls a form twice: in warm caches."""
    monkeypatch.setattr(race, "RACE_S", 0.1)
    monkeypatch.setattr(race, "CHECK_S", 0.01)
    forms, later = [1.0, 0.99], time.perf_counter() + 60
    assert max(held(forms, noise=0.03, deadline=later, call_s=0.005)[1]) == 2 * race.OPEN_ROUNDS
    assert max(held([1.0, 0.5], noise=0.03, deadline=later, call_s=0.005)[1]) < race.OPEN_ROUNDS
    monkeypatch.setattr(race, "OPEN_S", 0.0)
    assert max(held(forms, noise=0.03, deadline=later, call_s=0.005)[1]) < race.OPEN_ROUNDS


def test_forms_that_are_alike_do_not_replace_the_given_model(held):
    assert [held([1.0, 1.0, 1.0], seed=seed)[0] for seed in range(20)].count(0) >= 19


def test_of_challengers_that_are_alike_the_first_is_taken(held):
    assert [held([2.0, 1.0, 1.0, 1.003], seed=seed)[0] for seed in range(20)].count(1) >= 19


def test_four_per_cent_are_found_under_more_noise_than_that(held):
    assert [held([2.0, 1.04, 1.0, 1.06], noise=0.08, seed=seed)[0] for seed in range(20)].count(2) >= 19
    assert [held([1.04, 1.0], noise=0.08, seed=seed)[0] for seed in range(20)].count(1) >= 19


def test_who_was_lucky_in_the_heat_does_not_win(held):
    calls, heat = itertools.count(), 2 + 2 * race.HEAT_ROUNDS
    assert held([1.0, lambda: 0.5 if next(calls) < heat else 1.2, 1.5], noise=0.01) == (0, [32, 32])


def test_what_is_clear_is_known_soon_and_who_is_out_leaves(held):
    winner, rounds = held([1.5, 1.0, 1.09], noise=0.01)
    assert winner == 1
    assert rounds == [32, 32, 32]  # each timed call follows one of the same; sixteen rounds
    winner, rounds = held([1.5, 1.0, 1.004, 1.025], noise=0.03)
    assert winner == 1
    assert rounds[0] < rounds[1] / 4


def test_a_given_model_that_is_far_ahead_meets_nobody_in_a_final(held):
    assert held([1.0, 1.3, 1.5]) == (0, [])


def test_where_no_time_is_left_three_rounds_decide_what_is_clear(held):
    now = time.perf_counter()
    assert held([1.5, 1.0], noise=0.02, deadline=now) == (1, [3, 3])
    assert held([1.02, 1.0], noise=0.0, deadline=now)[0] == 0


def test_the_rule_of_faster():
    given = Timing(10.0, 11.0, 0.1, 50)
    assert faster(Timing(9.0, 10.0, 0.1, 50), given)
    assert not faster(Timing(9.8, 10.0, 0.0, 50), Timing(10.0, 10.0, 0.0, 50))  # within the margin
    assert not faster(Timing(9.0, 20.0, 8.0, 5), given)  # within the noise
    assert not faster(Timing(11.0, 12.0, 0.1, 50), given)


@pytest.mark.parametrize(
    ("looks", "chosen"), [([35e-3, 9e-3, 8e-3], "slow at first"), ([35e-3, 34e-3, 36e-3], "given")]
)
def test_who_was_slow_at_the_first_look_gets_two_more(looks, chosen, monkeypatch):
    """As ONNX Runtime, which plans its memory then; where no twenty rounds of all fit into the heat."""
    seen = iter(looks[1:])
    monkeypatch.setattr(race, "once_ms", lambda call, clock: 1e3 * next(seen))
    monkeypatch.setattr(latency, "once_ms", lambda call, clock="wall": call())
    monkeypatch.setattr(paired, "once_ms", lambda call, clock="wall": call())
    monkeypatch.setattr(race, "_calls", lambda bench, entries: {str(i): e.form for i, e in enumerate(entries)})
    bench = SimpleNamespace(device=torch.device("cpu"), obstacle="", clock="wall")
    entries = [
        Entry(Choice("given"), lambda: 10.0, True, 10e-3),
        Entry(Choice("slow at first"), lambda: 7.5, True, looks[0]),
        Entry(Choice("slow"), lambda: 100.0, True, 100e-3),
    ]
    seen = itertools.chain(seen, itertools.repeat(100e-3))
    winner = race.race(bench, entries, time.perf_counter() + 8.0, lambda part: None)
    assert winner.row.engine == chosen
    assert "at the first look" in entries[2].row.note


class Stalled(float):
    """A form whose second call is stalled: the first one of the final."""

    calls = 0

    def __call__(self):
        self.calls += 1
        return 4 * self if self.calls == 2 else self


def test_one_disturbed_call_of_a_long_final_loses_nothing(held):
    """The given model meets nobody there, and the form is alone: one call may confirm the heat, but not refute it."""
    for form, rounds in ((2.0, {1}), (Stalled(2.0), {4, 5, 6})):
        winner, final = held([6.0, form], noise=0.0, deadline=time.perf_counter(), call_s=0.02)
        assert winner == 1
        assert final[0] == 0
        assert final[1] in rounds
