"""Whose turn it is while another process works ahead: with described engines and a described process."""

import contextlib
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from leanconv.engine import ahead, optimize, schedule
from leanconv.engine.budget import Budget
from leanconv.engine.candidate import Candidate
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.schedule import OWN_SHARE


class Process:
    """In place of `Ahead`: it finishes a piece of work after each `steps` looks at it, well or not."""

    steps, well = 10**9, True
    last = None

    def __init__(self, work):
        self.work, self.looks, self.rests, self.resting, self.ended = list(work), 0, 0, False, False
        Process.last = self

    @property
    def finished(self):
        self.looks += 1
        return [self.well] * min(len(self.work), self.looks // self.steps)

    @property
    def busy(self):
        return self.looks // self.steps < len(self.work)

    @contextlib.contextmanager
    def rest(self):
        self.rests, self.resting = self.rests + 1, True
        yield
        self.resting = False

    def end(self):
        self.ended = True


@pytest.fixture
def engines(monkeypatch):
    """`engines(steps, name=estimate, ...)`: engines in place of the real ones; the process works ahead for "slow"."""
    prepared: list[str] = []
    before = dict(CANDIDATES)
    monkeypatch.setattr(schedule, "Ahead", Process)
    monkeypatch.setattr(ahead, "usable_cores", lambda: {0, 1})
    monkeypatch.setattr(Budget, "learn", lambda self, expected, took: None)
    monkeypatch.setattr(Budget, "timing", lambda self, entries: 1.0)
    monkeypatch.setattr(schedule, "POLL_S", 0.0)
    Process.last = None

    def made(steps, **each):
        Process.steps = steps
        CANDIDATES.clear()
        for name, estimate in each.items():

            def prepare(bench, dtype, name=name):
                prepared.append(name if dtype is None else f"{name} half")
                return lambda x: bench.model(x)

            engine = Candidate(name, lambda b, d: None, lambda b, s=estimate: s, prepare)
            CANDIDATES[name] = replace(engine, ahead=lambda b, d: (print, (d,))) if name == "slow" else engine
        return prepared

    yield made
    CANDIDATES.clear()
    CANDIDATES.update(before)


def run(budget_s, dtype=torch.bfloat16):
    return optimize(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 16, 16), budget_s=budget_s, dtype=dtype).choices


def test_the_others_come_first_while_the_process_works(engines):
    prepared = engines(10**9, slow=20.0, quick=6.0)
    run(240)
    assert prepared == ["quick half", "quick", "slow half", "slow"]
    assert [dtype for _, (dtype,) in Process.last.work] == [torch.bfloat16, None]  # the asked type first


def test_but_not_in_the_seconds_that_the_asked_type_needs(engines):
    prepared = engines(10**9, slow=20.0, quick=10.0)
    run(28)  # of 27 s beside the timing: "quick half" and, whatever comes first, not both others
    assert prepared[:2] == ["quick half", "slow half"]


def test_whose_cache_is_filled_comes_in_the_order_of_all(engines):
    prepared = engines(1, slow=20.0, quick=6.0)
    run(240)
    assert prepared == ["quick half", "slow half", "quick", "slow"]


def test_a_form_fits_once_its_cache_is_filled(engines):
    prepared = engines(1, slow=30.0, quick=11.0)
    choices = run(OWN_SHARE * 30.0 + 2.0, dtype=None)
    assert prepared == ["quick", "slow"]
    assert choices.missed == ("", 0.0)


def test_failed_work_filled_no_cache(engines, monkeypatch):
    monkeypatch.setattr(Process, "well", False)
    prepared = engines(1, slow=30.0, quick=11.0)
    choices = run(OWN_SHARE * 30.0 + 2.0, dtype=None)
    assert prepared == ["quick"]
    assert choices.missed[0] == "slow"


def test_who_is_waited_for_takes_no_turn_of_another(engines):
    """Of no avail: the process never ends. After the race "other" still fits by the hope of an estimate."""
    prepared = engines(10**9, slow=18.0, quick=10.5, other=12.5)
    run(13, dtype=None)
    assert prepared == ["quick", "other"]


def test_after_the_race_nothing_is_left_unused_while_the_process_works(engines):
    """Its form does not fit in full; it does once its cache is filled, and that is waited for."""
    prepared = engines(60, slow=20.0, quick=11.0)
    choices = run(16, dtype=None)
    assert prepared == ["quick", "slow"]
    assert choices["slow"].timing is not None
    assert choices.missed == ("", 0.0)


def test_after_a_race_no_further_hope_ends_the_wait(monkeypatch):
    """ "slow" fits once its cache is filled; "other" does not fit, and has had its chance."""
    named = {
        name: Candidate(name, lambda b, d: None, lambda b, s=estimate: s, lambda b, d: None)
        for name, estimate in {"slow": 20.0, "other": 13.0}.items()
    }
    slow, other = (schedule.Waiting(place, each, None) for place, each in enumerate(named.values()))
    budget = Budget(1e9)
    monkeypatch.setattr(Budget, "left", 10.0)
    turns = schedule.Schedule(None, budget, [slow, other], first=None)
    process = Process([slow])
    turns._ahead, turns._listed, turns.raced = process, [slow], True
    monkeypatch.setattr(schedule.time, "sleep", lambda _: setattr(process, "steps", 1))
    assert turns.next(0.0) is slow


def test_who_can_never_fit_is_not_waited_for(engines):
    prepared = engines(10**9, slow=100.0, quick=11.0)
    before = time.perf_counter()
    assert run(16, dtype=None).missed[0] == "slow"
    assert prepared == ["quick"]
    assert time.perf_counter() - before < 10


def test_the_process_rests_while_forms_are_timed_and_ends_with_the_call(engines, monkeypatch):
    seen = []

    def race(bench, entries, deadline, on_part):
        seen.append(Process.last.resting)
        raise KeyboardInterrupt

    engines(10**9, slow=20.0, quick=6.0)
    monkeypatch.setattr("leanconv.engine.race.race", race)
    with pytest.raises(KeyboardInterrupt):
        run(240)
    assert seen == [True]
    assert Process.last.rests == 4 + 1  # the second call of each form, and the race
    assert Process.last.ended


@pytest.mark.parametrize(("cores", "quick", "limit"), [(1, 6.0, 1 << 30), (2, 1.0, 1 << 30), (2, 6.0, 0)])
def test_no_process_where_it_does_not_pay(engines, monkeypatch, cores, quick, limit):
    """One core; other preparations that are over before the process has started; a large model."""
    monkeypatch.setattr(ahead, "usable_cores", lambda: set(range(cores)))
    monkeypatch.setattr(ahead, "MOST_BYTES", limit)
    prepared = engines(1, slow=20.0, quick=quick)
    run(240)
    assert Process.last is None
    assert prepared == ["quick half", "slow half", "quick", "slow"]


def test_a_model_that_no_process_can_load_costs_the_help_alone(engines, monkeypatch):
    def refuses(work):
        raise AttributeError("no copy of a local class")

    monkeypatch.setattr(schedule, "Ahead", refuses)
    prepared = engines(1, slow=20.0, quick=6.0)
    run(240)
    assert prepared == ["quick half", "slow half", "quick", "slow"]


def test_no_process_for_views_of_what_is_too_large(engines, monkeypatch):
    """A copy of a view takes along all that it views."""
    monkeypatch.setattr(ahead, "MOST_BYTES", 1 << 12)
    engines(1, slow=20.0, quick=6.0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    model.register_buffer("few", torch.zeros(1 << 12)[:4])
    optimize(model, torch.randn(1, 3, 16, 16), budget_s=240, dtype=torch.bfloat16)
    assert Process.last is None
