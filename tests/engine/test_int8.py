"""`optimize` in int8: peers calibrated and judged by their loss, refusals with the layers that cost most."""

import pytest
import torch
from torch import nn

from leanconv.engine import int8 as peers
from leanconv.engine import optimize
from leanconv.engine.candidate import missing
from leanconv.engine.candidates import CANDIDATES
from leanconv.errors import BadInput
from tests.deploy.int8.networks import built

PEERS = [
    pytest.param(name, marks=pytest.mark.skipif(bool(missing(*needs)), reason=f"needs the export extra: {needs}"))
    for name, needs in (("onnxruntime", ("onnx", "onnxscript", "onnxruntime")), ("openvino", ("openvino", "nncf")))
]


def int8(model, x, data, *engines, **named):
    return optimize(model, x, dtype=torch.int8, data=data, engines=engines, budget_s=600, progress=False, **named)


@pytest.mark.slow
@pytest.mark.parametrize("engine", PEERS)
def test_a_peer_is_calibrated_and_its_loss_stands_beside_the_limit(engine, always):
    model, x, data = built(), torch.rand(2, 3, 24, 24), torch.rand(7, 3, 24, 24)
    found = int8(model, x, [(data, torch.zeros(7))], engine)
    row = found.choices[f"{engine} int8"]
    assert row.tolerance == 0.005
    assert 0 < row.error < 1e-3, row.note
    with torch.no_grad():
        y, given = model(x), found._forms[next(iter(found._forms))](x)
    assert given.dtype == y.dtype
    assert 1 - 0.01 < float(((given - y.mean()) * (y - y.mean())).sum() / (y - y.mean()).square().sum()) < 1 + 0.01
    text = str(found.choices)
    assert "int8: error is the relative squared error on 7 pictures" in text
    assert found.choices.to_dict()["int8"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", PEERS)
def test_a_form_above_the_limit_is_refused_with_the_layers_that_cost_most(engine):
    model, x, data = built(1000.0), torch.rand(1, 3, 24, 24), torch.rand(4, 3, 24, 24)
    found = int8(model, x, data, engine)
    row = found.choices[f"{engine} int8"]
    assert row.error > row.tolerance
    assert row.note.startswith("refused: relative squared error ")
    assert "allowed 0.005; int8 costs most in mid.0 (" in row.note
    assert not row.chosen
    torch.testing.assert_close(found(x), model(x), rtol=1e-4, atol=1e-5)
    allowed = int8(model, x, data, engine, max_loss=10.0)
    assert not allowed.choices[f"{engine} int8"].note.startswith("refused")


@pytest.mark.slow
@pytest.mark.parametrize("engine", PEERS)
def test_a_network_with_several_inputs_and_outputs(engine):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x, *, scale):
            y = self.conv(x).relu() * scale
            return {"map": y, "mean": y.mean((2, 3))}

    torch.manual_seed(0)
    calls = [{"x": torch.rand(2, 3, 16, 16), "scale": 1 + torch.rand(2, 1, 1, 1)} for _ in range(4)]
    found = int8(Pair().eval(), calls[0], calls, engine)
    row = found.choices[f"{engine} int8"]
    assert 0 < row.error < 5e-3, row.note
    assert {k: v.shape for k, v in found(**calls[1]).items()} == {"map": (2, 4, 16, 16), "mean": (2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", PEERS)
def test_the_users_metric_decides(engine):
    model, x, images = built(), torch.rand(1, 3, 24, 24), torch.rand(5, 3, 24, 24)
    with torch.no_grad():
        classes = model(images).argmax(1)
    asked = []

    def metric(form):
        asked.append(form)
        return float((form(images).argmax(1) == classes).float().mean())

    found = int8(model, x, images, engine, metric=metric, max_loss=0.05)
    row = found.choices[f"{engine} int8"]
    assert 0 <= row.error <= 0.05, row.note
    assert asked[0] is model
    assert "int8: error is the loss of the metric, which is 1 in float" in str(found.choices)


@pytest.mark.slow
@pytest.mark.parametrize("engine", PEERS)
def test_another_shape_runs_the_given_model(engine, always):
    model, x = built(), torch.rand(1, 3, 24, 24)
    found = int8(model, x, torch.rand(4, 3, 24, 24), engine)
    other = torch.rand(1, 3, 30, 26)
    for _ in range(2):
        torch.testing.assert_close(found(other), model(other), rtol=1e-4, atol=1e-5)
    with pytest.raises(BadInput, match="only the number of rows may differ"):
        found.specialise_(other)


def test_engines_without_int8_say_so_and_are_not_run():
    found = int8(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), torch.rand(2, 3, 8, 8), "folded", "channels_last")
    for name in ("folded", "channels_last"):
        row = found.choices[f"{name} int8"]
        assert (row.error, row.note) == (None, "PyTorch's own layers are not tried in int8")
    assert found.choices.int8 == ""


def test_int8_without_data_says_what_to_pass():
    with pytest.raises(BadInput, match="pass data=, a few dozen inputs"):
        optimize(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), dtype=torch.int8)


@pytest.mark.parametrize(
    "named",
    [{"data": torch.rand(1, 3, 8, 8)}, {"metric": lambda form: 1.0}, {"max_loss": 0.1}],
    ids=lambda named: next(iter(named)),
)
def test_what_has_no_effect_without_int8_is_refused(named):
    with pytest.raises(BadInput, match=f"{next(iter(named))}: for int8 alone"):
        optimize(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), **named)


def test_other_integers_are_no_type_to_compute_in():
    with pytest.raises(BadInput, match=r"dtype=torch.uint8: must be a floating-point type, .* or torch.int8"):
        optimize(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), dtype=torch.uint8)


def test_an_engine_that_fails_in_int8_costs_only_itself(monkeypatch):
    for name in ("nncf", "onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(name, reason=f"needs the export extra: {name}")

    def broken(bench):
        raise RuntimeError("no such operator\nand a page of advice")

    monkeypatch.setattr(peers, "openvino_int8", broken)
    found = int8(nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), torch.rand(2, 3, 8, 8), "openvino", "folded")
    assert found.choices["openvino int8"].note == "failed: RuntimeError: no such operator"
    assert found.choices["folded"].error is not None


def test_the_estimate_of_int8_is_larger():
    class Bench:
        calibration, layers, call_s, capture_s = None, 10, 0.1, 0.5

    for name in ("openvino", "onnxruntime"):
        candidate = CANDIDATES[name]
        assert candidate.estimate(Bench, torch.int8) > candidate.estimate(Bench, None) + 1


@pytest.mark.parametrize(
    ("features", "exact"),
    [
        ("sse2 avx2", False),
        ("sse2 avx2 avx_vnni", True),
        ("sse2 avx512f avx512_vnni", True),
        ("asimd sve", True),
        ("", True),
    ],
)
def test_products_of_8_bits_overflow_on_x86_without_vnni(features, exact):
    assert peers.has_vnni(features.split()) is exact
