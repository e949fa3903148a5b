"""Budgets: one syntax, and errors that state it."""

import pytest

from leanconv.errors import BadInput
from leanconv.planner.budget import Budget, amount


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ("latency<=50%", {"latency": 10.0}),
        ("latency<=0.5", {"latency": 10.0}),
        (" latency <= 12 ms ", {"latency": 12.0}),
        ("latency<=1.5s", {"latency": 1500.0}),
        ("latency<=250us", {"latency": 0.25}),
        ("faster=2x", {"latency": 10.0}),
        ("faster=2.5", {"latency": 8.0}),
        ("macs<=40M", {"macs": 4e7}),
        ("macs<=1, params<=80%", {"macs": 20.0, "params": 16.0}),
        ("bytes<=2MB", {"bytes": 2e6}),
        ("cycles<=3000", {"cycles": 3000.0}),
        ({"latency": 0.25, "macs": "2k"}, {"latency": 5.0, "macs": 2000.0}),
        ({"faster": 4}, {"latency": 5.0}),
    ],
)
def test_what_it_says(given, limits):
    found = Budget.of(given)
    assert {limit.quantity: limit.of(20.0) for limit in found.limits} == pytest.approx(limits)
    assert Budget.of(str(found)) == found  # what is printed can be typed
    assert Budget.of(found) is found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "limits nothing"),
        ({}, "limits nothing"),
        (2.0, "latency<=50%"),
        ("fast", "faster=2x"),
        ("latency=50%", "latency<=50%"),
        ("faster<=2x", "latency<=50%"),
        ("faster=0.5x", "at least 1"),
        ("faster=two", "faster=2x"),
        ("latancy<=50%", "did you mean 'latency'"),
        ("latency<=150%", "at most 100%"),
        ("latency<=12", "ms"),
        ("latency<=12M", "units"),
        ("macs<=5ms", "units"),
        ("macs<=0", "no positive value"),
        ("macs<=-3", "no positive value"),
        ("macs<=nan", "no positive value"),
        ("macs<=", "no positive value"),
        ("macs<=50%,macs<=40%", "twice"),
        ("faster=2x,latency<=50%", "twice"),
        ({"latency": None}, "no positive value"),
    ],
)
def test_what_it_refuses(given, words):
    with pytest.raises(BadInput, match="budget") as error:
        Budget.of(given)
    assert words in str(error.value)


def test_scaled():
    found = Budget.of("latency<=50%, macs<=10M").scaled({"latency": 0.9})
    assert [limit.of(100.0) for limit in found.limits] == pytest.approx([45.0, 1e7])


def test_amounts_have_units():
    assert [amount("latency", 12.345), amount("macs", 4.1e7)] == ["12.35ms", "41M"]
