"""A plan that changes nothing: what it says instead, and that its number is the measured one."""

import json

import pytest
from torch import nn, randn

from docs.generate.measured import RESULTS
from leanconv.convert import advice, plan
from leanconv.cost import dense_cost
from leanconv.registry import get
from leanconv.spec import ConvSpec

X = randn(1, 8, 16, 16)


def separable():
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2, groups=8), nn.Conv2d(8, 16, 1), nn.ReLU()
    )


def test_a_plan_without_a_swap_names_optimize_and_other_operators():
    text = str(plan(separable(), X, to="hetconv(part=4)"))
    assert "0 of 3 convolutions change" in text
    assert "`optimize` alone makes a network faster" in text
    line = next(line for line in text.splitlines() if "depthwise convolutions leaner" in line)
    assert "xsepconv" in line
    assert "hetconv" not in line


def test_a_plan_with_a_swap_gives_no_such_advice():
    text = str(plan(separable(), X, to="hetconv(part=4)", where="0"))
    assert "1 of 3 convolutions change" in text
    assert "optimize" not in text


def test_what_is_named_stands_for_a_layer_and_has_fewer_macs():
    specs = [ConvSpec.of(64, 128, 3, 1, 1, h=20, w=20), ConvSpec.of(64, 64, 7, 1, 3, groups=64, h=20, w=20)]
    lines = advice.advice(specs)[1:]
    assert [line.split(" convolutions")[0].rpartition(" ")[2] for line in lines] == ["dense", "depthwise"]
    for spec, line in zip(specs, lines, strict=True):
        named = line.partition(": ")[2].split(", ")
        assert named
        for name in named:
            assert spec.kind in get(name).replaces
            assert get(name).why_not(spec) is None
            assert get(name).cost(spec).macs < dense_cost(spec).macs


def test_its_number_is_the_measured_one():
    entries = json.loads((RESULTS / "fused_engine.json").read_text())
    (entry,) = (e for e in entries if e["model"] == advice._NETWORK)
    ms = {name.rpartition(", ")[2]: timed["median_ms"] for name, timed in entry["times"].items()}
    assert entry["threads"] == 1
    assert entry["machine"]["name"] == "AMD EPYC"
    assert pytest.approx(ms["channels_last"] / ms["fused"], rel=0.05) == advice._FASTER
