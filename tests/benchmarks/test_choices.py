"""What `optimize` chooses against the best peer: the ratio, the sample that a part is, the forms that are held."""

import argparse
import random
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.choices import (
    DENSE,
    DEPTHWISE,
    KNOWN,
    NETWORKS,
    SIGMAS,
    asked,
    best_peer,
    duel,
    keeping,
    layer_model,
    layer_rows,
    left_over,
    near,
    right,
    run,
    show,
    spec_of,
    warm,
)
from leanconv.engine.candidates import CANDIDATES
from leanconv.engine.choices import Choice, Choices
from leanconv.engine.optimize import optimize
from leanconv.measure import Timing
from leanconv.measure.timing import paired
from leanconv.nn import names


def times(**medians):
    return {name: Timing(ms, ms, 0.0, 5) for name, ms in medians.items()}


def test_the_best_peer_is_the_fastest_of_the_others_and_our_forms_are_none():
    assert best_peer(times(chosen=2.0, eager=5.0, openvino=1.9, onnxruntime=3.0)) == "openvino"
    assert best_peer(times(chosen=2.0, eager=5.0, folded=1.0, fused=1.0)) == "eager"


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.3])
def test_a_duel_has_the_rounds_it_needs_to_know_the_ratio_whatever_that_is(monkeypatch, factor):
    draw = random.Random(0)
    monkeypatch.setattr(paired, "once_ms", lambda call, clock="wall": call() * draw.lognormvariate(0.0, 0.04))
    turns = duel(lambda: 1.0, lambda: factor, 60.0, "wall")
    seen = turns.ratio("peer", "chosen", sigmas=SIGMAS)
    assert seen.low <= factor <= seen.high < seen.low * (1 + KNOWN) ** 2
    assert 60 < len(turns.times["peer"]) == len(turns.times["chosen"]) < 260
    assert len(duel(lambda: 1.0, lambda: factor, 0.0, "wall").times["peer"]) == 7


def test_a_part_of_the_rows_is_a_sample_of_operators_and_layers():
    rows = layer_rows()
    assert len(set(rows)) == len(rows)
    assert {layer for _, layer in rows} == {*DENSE, *DEPTHWISE}
    assert rows == layer_rows()
    assert {operator for operator, _ in rows} == set(names())
    assert len({operator for operator, _ in rows[:80]}) > 15
    assert len({layer for _, layer in rows[:80]}) > 20


@pytest.mark.parametrize(
    ("given", "layers", "networks"),
    [
        ({}, len(layer_rows()), len(NETWORKS)),
        ({"networks": []}, len(layer_rows()), 0),
        ({"operators": ["network"]}, 0, len(NETWORKS)),
        ({"operators": ["splconv"]}, len(DENSE), 0),
        ({"layers": ["VGG"], "operators": ["sic"], "networks": ["timm:resnet18"]}, 4, 1),
    ],
)
def test_what_is_asked_for(given, layers, networks):
    rows = asked(argparse.Namespace(**{"operators": None, "layers": [""], "networks": None} | given))
    assert sum(operator == "network" for operator, _ in rows) == networks
    assert len(rows) == layers + networks


def test_a_layer_is_the_operator_batchnorm_and_relu_at_the_layers_size():
    spec = spec_of("MobileNetV3 72 5×5 28")
    model = layer_model("xsepconv", spec)
    with torch.no_grad():
        assert model(spec.input()).shape == (1, 72, 28, 28)
    assert not model.training
    assert model[1].running_var.std() > 0


def test_forms_are_kept_as_optimize_prepares_them_and_the_table_of_engines_is_left_as_it_was():
    before = dict(CANDIDATES)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    with keeping() as forms:
        choices = optimize(model, x, engines=["folded", "channels_last"], budget_s=240).choices
    assert before == CANDIDATES
    assert set(forms) == {"folded", "channels_last"}
    torch.testing.assert_close(forms["channels_last"](x), model(x).detach())
    assert right(choices) >= {"folded", "channels_last"}


def test_the_best_peer_is_never_left_out_of_the_rounds():
    def work(n):
        return lambda: sum(range(n))

    calls = {"chosen": work(1_000), "fused": work(1_000), "eager": work(2_000_000), "openvino": work(100_000)}
    assert set(near(calls)) == {"chosen", "fused", "openvino"}


def test_who_differs_from_the_model_is_no_peer():
    rows = (Choice("openvino", error=1e-3, tolerance=1e-4), Choice("folded", error=1e-7, tolerance=1e-4), Choice("x"))
    assert right(Choices(rows, "", 0, 0.0)) == {"folded"}


def test_a_peer_that_the_budget_left_out_is_prepared_for_the_comparison():
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    skipped = "skipped: needs about 2 s, 0 s left before timing; raise budget_s=1"
    rows = (
        Choice("channels_last", note=skipped), Choice("compile", note=skipped), Choice("fused", note=skipped),
        Choice("folded", error=1e-7, tolerance=1e-4), Choice("openvino", note="openvino not installed"),
    )  # fmt: skip
    with torch.no_grad():
        forms = left_over(Choices(rows, "", 0, 0.0), model, x)
        assert set(forms) == {"channels_last"}
        torch.testing.assert_close(forms["channels_last"](x), model(x))


def test_rows_of_this_commit_are_not_measured_again_and_the_minutes_end_a_run(tmp_path, monkeypatch):
    from benchmarks import choices

    done = []
    found = {
        "chosen": "fused",
        "peer": "eager",
        "ratio": 0.96,
        "low": 0.94,
        "high": 0.98,
        "ms": {"chosen": {"median_ms": 1.0, "iqr_ms": 0.1}},
    }
    monkeypatch.setattr(choices, "commit", lambda: "abc")
    monkeypatch.setattr(choices, "measured", lambda *given: done.append(given) or found)
    given = argparse.Namespace(
        threads=1,
        clock="wall",
        again=False,
        compile=False,
        minutes=5.0,
        budget=1.0,
        seconds=0.1,
        out=tmp_path / "choices.json",
    )
    rows, report = layer_rows()[-3:], {"rows": []}
    run(rows, report, given)
    run(rows, report, given)
    assert len(done) == len(report["rows"]) == 3
    assert all("compile" not in engines and "fused" in engines for *_, engines in done)
    assert given.out.read_text().count('"ratio"') == 3
    assert "3 rows, 3 below 0.97, 0 of them beyond noise" in show(report["rows"])
    assert "1 of them beyond noise" in show([*report["rows"][1:], report["rows"][0] | {"high": 0.969}])
    real = choices.describe
    monkeypatch.setattr(choices, "describe", lambda device: real(device) | {"name": "another"})
    run(rows[:1], report, given)
    assert len(report["rows"]) == 1
    assert len(done) == 4
    given.minutes = -1.0
    run(layer_rows()[:3], report, given)
    assert len(done) == 4


def test_to_warm_is_to_prepare_every_rows_kernels(monkeypatch):
    made = []
    monkeypatch.setitem(CANDIDATES, "fused", replace(CANDIDATES["fused"], prepare=lambda b, dtype: made.append(b)))
    warm([("sic", "VGG 512→512 2"), ("hetconv", "VGG 512→512 2")])
    assert [bench.tensors[0].shape for bench in made] == [(1, 512, 2, 2)] * 2
