"""Engines side by side: who stays in the rounds, what the ratios are to, what is refused and told."""

import pytest
import torch
from torch import nn

from leanconv.engine.fused.roofline import Floor
from leanconv.engine.peers import EngineComparison, compare_engines, hopeful
from leanconv.errors import BadInput, UnknownName
from leanconv.measure import Timing
from leanconv.measure.hardware.roofline import Peaks


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()).eval()


def test_the_best_peer_of_each_model_stays_however_far_ahead_our_engine_is():
    times = {"a fused": 1.0, "a x": 5.0, "a y": 5.5, "a z": 7.0, "b fused": 30.0, "b x": 20.0, "b y": 24.1}
    stay = hopeful({tuple(name.split()): ms for name, ms in times.items()})
    assert stay == {("a", "fused"), ("a", "x"), ("a", "y"), ("b", "fused"), ("b", "x")}


def test_ratios_and_shares():
    times = {("a", "x"): 20.0, ("a", "fused"): 10.0, ("b", "x"): 50.0}
    found = EngineComparison(
        {key: Timing(ms, ms, 0.0, 5) for key, ms in times.items()},
        {"a": Floor(8.0, 6.0, 1, 1), "b": None},
        {("b", "fused"): "no kernels"},
        Peaks(1, 1, "made up"),
        "here",
        "wall",
    )
    assert found.base == ("a", "fused")
    assert found.share(("a", "fused")) == pytest.approx(0.8)
    assert found.of_peak(("a", "x")) == pytest.approx(0.3)
    assert found.share(("b", "x")) is found.of_peak(("b", "x")) is None
    text = str(found)
    assert "b, fused: no kernels" in text
    last = text.splitlines()[-4].split()
    assert last == ["b", "x", "50", "0", "5", "5.00", "-", "-", "-"]
    assert found.to_dict()["times"]["a, x"]["median_ms"] == 20.0
    assert set(found.to_dict()["floors"]) == {"a"}


def test_every_engine_is_prepared_verified_and_timed():
    model, x, told, forms = tiny(), torch.randn(1, 3, 16, 16), [], []
    found = compare_engines(
        {"one": model, "two": tiny()},
        x,
        engines=["channels_last", "eager"],
        budget_s=0,
        progress=lambda what, done: told.append((what, done)),
        on_form=lambda name, form: forms.append(name),
    )
    assert list(found.times) == [(m, e) for m in ("one", "two") for e in ("channels_last", "eager")]
    assert found.floors["one"].macs == 16 * 16 * 8 * 27
    assert found.base in found.times
    assert forms == ["one, channels_last", "one, eager", "two, channels_last", "two, eager"]
    assert told[-1] == ("in turns", 1.0)


def test_a_form_that_is_wrong_is_told_and_not_timed(monkeypatch):
    from leanconv.engine import candidates, peers

    wrong = candidates.Candidate("folded", lambda *_: None, lambda _: 0.0, lambda *_: lambda x: torch.zeros(1, 8, 4, 4))
    monkeypatch.setitem(peers.CANDIDATES, "folded", wrong)
    x = torch.randn(1, 3, 4, 4)
    found = compare_engines({"one": tiny()}, x, engines=["eager", "folded"], budget_s=0)
    assert set(found.times) == {("one", "eager")}
    assert found.refused["one", "folded"].startswith("differs")
    with pytest.raises(BadInput, match="differs"):
        compare_engines({"one": tiny()}, x, engines=["folded"], budget_s=0)


def test_other_engines_stand_beside_those_of_optimize():
    from leanconv.engine.candidate import Candidate

    doubled = Candidate("twice", lambda *_: None, lambda _: 0.0, lambda bench, _: lambda x: [bench.model(x)][0])
    gone = Candidate("gone", lambda *_: "gone is not installed: pip install gone", lambda _: 0.0, lambda *_: None)
    x = torch.randn(1, 3, 4, 4)
    found = compare_engines({"one": tiny()}, x, engines=["eager"], budget_s=0, others=[doubled, gone])
    assert set(found.times) == {("one", "eager"), ("one", "twice")}
    assert "one, gone: gone is not installed: pip install gone" in str(found)


def test_a_model_that_writes_into_its_inputs_is_timed_alone():
    """Its engines would be given what its last call left."""

    class Writes(nn.Module):
        def forward(self, x):
            return x.add_(1)

    found = compare_engines({"one": Writes().eval()}, torch.zeros(1, 3, 4, 4), engines=["eager", "folded"], budget_s=0)
    assert set(found.times) == {("one", "eager")}
    assert "writes into its inputs" in found.refused["one", "folded"]


def test_bfloat16_halves_the_traffic_and_an_engine_without_it_is_told():
    x = torch.randn(1, 3, 16, 16)
    whole = compare_engines({"one": tiny()}, x, engines=["channels_last"], budget_s=0)
    half = compare_engines(
        {"one": tiny()}, x, engines=["channels_last", "onnxruntime"], dtype=torch.bfloat16, budget_s=0
    )
    assert 2 * half.floors["one"].moved == whole.floors["one"].moved
    assert "bfloat16" in half.refused["one", "onnxruntime"] or "installed" in half.refused["one", "onnxruntime"]
    assert "bfloat16" in half.label


@pytest.mark.parametrize(("options", "error"), [({"engines": ["fuzed"]}, UnknownName), ({"clock": "sun"}, BadInput)])
def test_refusals(options, error):
    with pytest.raises(error):
        compare_engines({"one": tiny()}, torch.randn(1, 3, 4, 4), **options)


def test_in_int8_the_losses_stand_beside_the_times():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs the export extra: {name}")
    x = torch.rand(1, 3, 16, 16)
    named = {"dtype": torch.int8, "data": torch.rand(4, 3, 16, 16), "budget_s": 0}
    found = compare_engines({"a": tiny()}, x, engines=["eager", "onnxruntime"], max_loss=0.1, **named)
    assert list(found.losses) == [("a", "onnxruntime")]
    assert 0 < found.losses["a", "onnxruntime"] < 0.1
    assert "a, onnxruntime: loss " in str(found)
    assert found.to_dict()["losses"] == {"a, onnxruntime": found.losses["a", "onnxruntime"]}
    assert "int8 matmul" in found.peaks.source or "float32" in found.peaks.source  # whichever is faster here
    with pytest.raises(BadInput, match="pass data="):
        compare_engines({"a": tiny()}, x, engines=["eager"], dtype=torch.int8)
