"""The race of the dense and the lean network: who is faster, and how surely."""

import pytest
import torch
from torch import nn

from leanconv.planner.lean.speed import race

EAGER = {"dense": "eager", "lean": "eager"}


@pytest.fixture
def networks():
    wide = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 64, 3, padding=1)).eval()
    return wide, nn.Conv2d(3, 8, 3, padding=1).eval(), torch.randn(1, 3, 48, 48)


def test_the_ratio_is_of_the_dense_time_over_the_lean_one(networks):
    wide, narrow, x = networks
    found = race(wide, narrow, x, budget_s=1.0, engines=EAGER, progress=False)
    ratio = found["ratio"]
    assert 1.5 < ratio["low"] <= ratio["middle"] <= ratio["high"]
    assert found["dense"]["median_ms"] > found["lean"]["median_ms"]
    assert found["threads"] == 1
    back = race(narrow, wide, x, budget_s=1.0, engines=EAGER, progress=False)
    assert back["ratio"]["high"] < 1


def test_each_network_runs_on_its_best_engine(networks):
    wide, narrow, x = networks
    found = race(wide, narrow, x, budget_s=1.0, engines={"dense": "folded", "lean": "eager"}, progress=False)
    assert found["dense"]["engine"] in ("folded", "eager")  # the given model stays where nothing is faster
    assert found["lean"]["engine"] == "eager"
