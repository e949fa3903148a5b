"""The integer program against every choice there is."""

import itertools
import math

import numpy as np
import pytest

from leanconv.planner.integer_program import least_harm, nearest_choice

pytest.importorskip("scipy", reason="needs the search extra")


def every(harms):
    return itertools.product(*[range(len(row)) for row in harms])


def total(rows, choice):
    return sum(row[c] for row, c in zip(rows, choice, strict=True))


def problem(seed, *, layers=5, quantities=2):
    """Random layers of 1 to 4 choices; the first costs 1 and does no harm, as dense does."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 5, layers)
    harms = [[0.0, *random.exponential(1.0, n - 1).tolist()] for n in sizes]
    costs = [[[1.0, *random.uniform(0.1, 1.3, n - 1).tolist()] for n in sizes] for _ in range(quantities)]
    return harms, costs, [random.uniform(0.4, 1.0) * layers for _ in range(quantities)]


@pytest.mark.parametrize("seed", range(25))
def test_it_is_the_best_of_all(seed):
    harms, costs, limits = problem(seed)
    good = [c for c in every(harms) if all(total(q, c) <= limit for q, limit in zip(costs, limits, strict=True))]
    found = least_harm(harms, costs, limits)
    if not good:
        assert found is None
        return
    assert tuple(found) in good
    assert total(harms, found) == pytest.approx(min(total(harms, c) for c in good), abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_cuts_give_the_plans_in_order(seed):
    harms, costs, limits = problem(seed, layers=4, quantities=1)
    good = sorted(total(harms, c) for c in every(harms) if total(costs[0], c) <= limits[0])
    found = []
    while (choice := least_harm(harms, costs, limits, found)) is not None and len(found) < 6:
        assert choice not in found
        found.append(choice)
    assert [total(harms, c) for c in found] == pytest.approx(good[: len(found)], abs=1e-9)
    assert len(found) == min(6, len(good))


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_units_decide_nothing(scale):
    harms, costs, limits = problem(3)
    scaled = [[scale * harm for harm in row] for row in harms]
    large = [[[value * scale for value in row] for row in quantity] for quantity in costs]
    assert least_harm(scaled, large, [limit * scale for limit in limits]) == least_harm(harms, costs, limits)


def test_infinite_harm_is_never_taken():
    assert least_harm([[0.0, math.inf], [0.0, 5.0]], [[[1.0, 0.1], [1.0, 0.2]]], [1.3]) == [0, 1]
    assert least_harm([[0.0, math.inf]], [[[1.0, 0.1]]], [0.5]) is None
    assert least_harm([[math.inf]], [[[0.1]]], [0.5]) is None


def test_a_monstrous_harm_hides_no_small_one():
    harms = [[0.0, 1e12], [0.0, 2e-6], [0.0, 1e-6]]
    assert least_harm(harms, [[[1.0, 0.0]] * 3], [2.0]) == [0, 0, 1]


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_a_limit_that_nothing_can_meet(limit):
    assert least_harm([[0.0, 1.0]], [[[1.0, 0.5]]], [limit]) is None


def test_no_layers():
    assert least_harm([], [[]], [1.0]) == []
    assert least_harm([], [[]], [1.0], [[]]) is None
    assert nearest_choice([], [], []) == []


@pytest.mark.parametrize("seed", range(10))
def test_the_nearest(seed):
    harms, costs, _ = problem(seed)
    limits = [0.3, 0.2]  # nothing meets these
    found = nearest_choice(costs, limits, [[True] * len(row) for row in harms])

    def excess(choice):
        return max(total(q, choice) / limit for q, limit in zip(costs, limits, strict=True))

    assert excess(found) == pytest.approx(min(excess(c) for c in every(harms)), rel=1e-6)


def test_a_harm_far_below_zero_is_taken():
    assert least_harm([[0.0, -1e200], [0.0, 1e-3]], [[[1.0, 0.5], [1.0, 0.5]]], [1.5]) == [1, 0]
