"""ncnn and XNNPACK as peers: what is said where they are missing, and their answers where they are there."""

import pytest
import torch
from torch import nn

from benchmarks import other_runtimes
from benchmarks.other_runtimes import OTHERS, versions
from leanconv.engine.peers import compare_engines
from leanconv.engine.workbench import Workbench
from leanconv.extras import installed

NEEDED = {"ncnn": ["ncnn", "pnnx"], "xnnpack": ["executorch"]}


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 5)).eval(), torch.randn(1, 3, 33, 31)


@pytest.mark.parametrize("name", OTHERS)
def test_a_missing_peer_is_named_with_its_command(name, monkeypatch):
    model, x = network()
    monkeypatch.setattr(other_runtimes, "installed", lambda library: library != NEEDED[name][-1])
    found = compare_engines({"one": model}, x, engines=["eager"], budget_s=0, others=[OTHERS[name]])
    assert f"one, {name}: {NEEDED[name][-1]} not installed: pip install {NEEDED[name][-1]}" in str(found)


@pytest.mark.parametrize("name", OTHERS)
def test_what_they_are_not_measured_in(name, monkeypatch):
    model, x = network()
    monkeypatch.setattr(other_runtimes, "installed", lambda library: True)
    bench = Workbench(model, (x,), {}, 1)
    assert OTHERS[name].why_not(bench, None) is None
    assert "float32 only" in OTHERS[name].why_not(bench, torch.bfloat16)
    several = OTHERS["ncnn"].why_not(Workbench(model, (torch.randn(2, 3, 9, 9),), {}, 1), None)
    assert several == "it takes one map of one sample, and gives one"


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_their_answers(name):
    if gone := [each for each in NEEDED[name] if not installed(each)]:
        pytest.skip(f"pip install {' '.join(gone)}")
    model, x = network()
    form = OTHERS[name].prepare(Workbench(model, (x,), {}, 1), None)
    for given in (x, torch.randn(x.shape)):
        torch.testing.assert_close(form(given), model(given), rtol=1e-4, atol=1e-5)


def test_versions_of_what_is_installed():
    assert versions(["compile", "fused", "eager"]) == {"compile": torch.__version__.partition("+")[0]}
