"""Who is prepared, in which order, within which seconds: `optimize`'s budget, with engines that take what they say."""

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from leanconv.engine import optimize
from leanconv.engine.budget import Budget
from leanconv.engine.candidate import Candidate
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.choices import Choice
from leanconv.engine.race import RACE_S, Entry
from leanconv.engine.workbench import MEASURING_S


@pytest.fixture
def engines():
    """`engines(name=(estimate, takes), ...)`: engines in place of the real ones; the list of who was prepared."""
    prepared: list[str] = []
    before = dict(CANDIDATES)

    def made(**each):
        CANDIDATES.clear()
        for name, (estimate, takes) in each.items():

            def prepare(bench, dtype, name=name, takes=takes):
                prepared.append(name if dtype is None else f"{name} half")
                time.sleep(takes)
                return bench.model

            CANDIDATES[name] = Candidate(name, lambda b, d: None, lambda b, s=estimate: s, prepare)
        return prepared

    yield made
    CANDIDATES.clear()  # their order is the table's
    CANDIDATES.update(before)


def run(budget_s, **options):
    return optimize(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 16, 16), budget_s=budget_s, **options).choices


def test_the_quick_ones_first_and_the_asked_dtype_before_all(engines):
    prepared = engines(slow=(3.0, 0.0), quick=(1.0, 0.0))
    run(240, dtype=torch.bfloat16)
    assert prepared == ["quick half", "slow half", "quick", "slow"]


def test_the_table_keeps_its_order(engines):
    engines(slow=(3.0, 0.0), quick=(1.0, 0.0))
    choices = run(240, dtype=torch.bfloat16)
    assert [row.label for row in choices] == ["eager", "slow", "quick", "slow bfloat16", "quick bfloat16"]
    assert choices.missed == ("", 0.0)
    assert not str(choices).startswith("budget_s")


def test_a_budget_that_is_too_small_says_so_first_and_names_one_that_is_not(engines):
    prepared = engines(endless=(1000.0, 0.0), quick=(0.1, 0.0))
    choices = run(6)
    assert prepared == ["quick"]
    assert choices["endless"].note.startswith("skipped: needs about ")
    first = str(choices).splitlines()[0]
    assert first.startswith("budget_s=6 was too small for endless; budget_s=")
    assert choices.to_dict()["missed"] == "endless"
    assert choices.to_dict()["enough_s"] > 200


def test_who_does_not_fit_lets_the_next_one_pass(engines):
    prepared = engines(first=(0.01, 0.0), endless=(500.0, 0.0), other=(600.0, 0.0))
    run(6)
    assert prepared == ["first"]


def test_no_second_is_left_while_an_engine_waits(engines, monkeypatch):
    """An engine that did not fit beside the race is prepared after it, in the seconds that the race left."""
    prepared = engines(quick=(0.1, 0.0), other=(0.1, 0.0), waits=(60.0, 0.2))
    monkeypatch.setattr(Budget, "timing", lambda self, entries: 15.0 * len(entries))
    monkeypatch.setattr(Budget, "learn", lambda self, expected, took: None)
    choices = run(100)  # 60 s do not fit beside the 45 that three forms are given, but beside the 15 or 30 of a duel
    assert prepared == ["quick", "other", "waits"]
    assert choices["waits"].timing is not None
    assert choices.missed == ("", 0.0)


def test_estimates_learn_from_what_the_engines_before_took(engines):
    """On a machine that is faster than the estimates say, engines fit that seemed too slow."""
    prepared = engines(a=(2.0, 0.2), b=(9.0, 0.2))
    run(8)
    assert prepared == ["a", "b"]


def test_and_from_engines_that_took_longer(engines):
    prepared = engines(a=(0.5, 1.5), b=(3.0, 3.0))
    choices = run(6)
    assert prepared == ["a"]
    assert choices.missed[0] == "b"


def test_the_winner_of_a_second_race_is_the_one_chosen(engines, monkeypatch):
    prepared = engines(quick=(0.1, 0.0), other=(0.1, 0.0), waits=(60.0, 0.0))
    monkeypatch.setattr(Budget, "timing", lambda self, entries: 15.0 * len(entries))
    monkeypatch.setattr(Budget, "learn", lambda self, expected, took: None)
    monkeypatch.setattr("leanconv.engine.race.beats", lambda given: True)
    choices = run(100)
    assert prepared[-1] == "waits"
    assert sum(row.chosen for row in choices) == 1
    assert all(row.note for row in choices)


def test_a_network_with_blocks_of_its_own_prints_none(engines):
    """As timm's: `model.blocks` is a module, not the table of an engine's blocks."""
    engines(quick=(0.1, 0.0))
    model = nn.Conv2d(3, 4, 3).eval()
    model.blocks = nn.Sequential(nn.Identity()).eval()
    choices = optimize(model, torch.randn(1, 3, 16, 16), budget_s=240).choices
    assert choices.blocks is None
    assert "Sequential" not in str(choices)


def test_the_trials_of_the_winner_and_the_shortest_race_are_part_of_the_estimate():
    given, form = (Entry(Choice(name), None, True, s) for name, s in (("given", 2.0), ("form", 1.0)))
    shortest = 2.0 + 1.0 + 1.0 + 3 * (1.0 + 1.0)  # one round of all and of one more, then three without the given model
    assert Budget(90).timing([given, form]) == shortest + 3 * (2.0 + 1.0)


def test_a_race_whose_order_is_clear_leaves_seconds_to_those_who_wait():
    def entries(*looks):
        return [Entry(Choice(str(i)), None, True, s) for i, s in enumerate(looks)]

    tight, clear = entries(0.9, 0.15, 0.16, 0.3, 0.35), entries(0.9, 0.15, 0.25, 0.3, 0.35)
    assert Budget(90).timing(tight) - Budget(90).trials(tight) == RACE_S
    least = 0.9 + 2 * 0.15 + 3 * 2 * 0.15  # the given model, which is out, the best, and one more that is as fast
    assert Budget(90).timing(clear) - Budget(90).trials(clear) == pytest.approx(2 * least)


def test_engines_in_the_asked_dtype_do_not_save_seconds_of_measuring_for_the_others(engines, monkeypatch):
    given = {}
    engines(quick=(5.0, 0.0), tuned=(30.0, 0.0))
    for name, each in list(CANDIDATES.items()):

        def prepare(bench, dtype, name=name):
            given[name, dtype] = bench.measuring_s
            return bench.model

        CANDIDATES[name] = replace(each, prepare=prepare)
    run(50, dtype=torch.bfloat16)
    assert given["tuned", torch.bfloat16] == MEASURING_S


def test_a_race_ends_early_enough_to_verify_its_winner(engines, monkeypatch):
    ends = []

    def race(bench, entries, deadline, on_part):
        ends.append(deadline)
        entries[0].row.chosen = True
        return entries[0]

    engines(quick=(0.1, 0.0))
    monkeypatch.setattr(Budget, "trials", lambda self, entries: 7.0)
    monkeypatch.setattr("leanconv.engine.race.race", race)
    before = time.perf_counter()
    run(60)
    assert ends[0] - before < 60 - 7 + 1


def test_the_last_who_waits_is_tried_where_its_estimate_may_be_too_high(engines, monkeypatch):
    prepared = engines(quick=(0.1, 0.0), waits=(11.0, 0.2))
    monkeypatch.setattr(Budget, "learn", lambda self, expected, took: None)
    run(10)
    assert prepared == ["quick", "waits"]
