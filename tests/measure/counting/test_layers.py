"""profile(): rows, totals, floors, and that the model stays as it was."""

import json

import pytest
import torch
from torch import nn

from leanconv.measure import profile
from leanconv.measure.hardware.roofline import Peaks, data_sheet, peaks
from leanconv.models.unet import unet

X = torch.randn(2, 3, 32, 32)


@pytest.fixture(scope="module")
def one():
    model = unet(base=4, levels=2, conv="splconv(alpha=0.5)")
    return model, profile(model, X, conventions=["torchstat"], budget_s=0)


def test_rows_are_layers_operators_and_what_containers_do(one):
    _, result = one
    rows = {row.layer.name: row for row in result.rows}
    assert rows["encoder.level2.conv1"].layer.type == "SPLConv2d"
    assert not any(name.startswith("encoder.level2.conv1.") for name in rows)
    assert rows["decoder.level1"].layer.type == "(functional)"  # the concatenation
    assert rows["decoder.level1"].layer.launches == 1
    assert rows["encoder.level1.conv1"].layer.launches == 1
    assert rows["encoder.level2.conv1"].layer.launches > 5
    assert all(row.timing is not None and row.timing.median_ms > 0 for row in result.rows)
    assert [row.layer.name for row in result.rows][:2] == ["encoder.level1.conv1", "encoder.level1.norm1"]


def test_totals_are_the_sums(one):
    model, result = one
    assert result.params == sum(p.numel() for p in model.parameters()) == sum(r.layer.params for r in result.rows)
    assert result.macs == sum(row.layer.flops for row in result.rows)
    assert result.floor_ms == pytest.approx(sum(row.floor_ms for row in result.rows))


def test_no_time_is_counted_twice_or_lost(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("leanconv.measure.layers.time.perf_counter", lambda: now[0])

    class Work(nn.Module):
        def __init__(self, ms, *inner):
            super().__init__()
            self.ms, self.inner = ms, nn.ModuleList(inner)

        def forward(self, x):
            now[0] += self.ms / 1e3
            for part in [*self.inner, *self.inner]:  # each one twice
                x = part(x)
            return x + 1

    result = profile(Work(1, Work(10), Work(100, Work(1000))), X, budget_s=0)
    times = {row.layer.name: row.timing.median_ms for row in result.rows}
    assert times == {
        "inner.0": pytest.approx(20),
        "inner.1.inner.0": pytest.approx(4000),
        "inner.1": pytest.approx(200),
        "(model)": pytest.approx(1),
    }


def test_floor_is_the_larger_of_arithmetic_and_traffic(one):
    _, result = one
    conv = next(row for row in result.rows if row.layer.name == "encoder.level1.conv1")
    macs, moved = 2 * 32 * 32 * 4 * 27, 4 * (2 * 3 * 32 * 32 + 2 * 4 * 32 * 32 + 4 * 27)
    assert (conv.layer.flops, conv.layer.min_bytes, conv.layer.bytes) == (macs, moved, moved)
    top = Peaks(gflops=100.0, gbytes_s=10.0, source="invented")
    assert top.floor_ms(50_000_000, 1000) == (pytest.approx(1.0), "compute")
    assert top.floor_ms(0, 10_000_000) == (pytest.approx(1.0), "memory")


def test_table_and_dict_say_the_same(one):
    _, result = one
    text, data = str(result), json.loads(json.dumps(result.to_dict()))
    assert data["total"]["macs"] == result.macs
    assert data["batch"] == 2
    assert data["conventions"]["torchstat"]["madd"] > data["conventions"]["torchstat"]["flops"]
    for word in ("1 thread", "float32", "contiguous", "batch 2", "3x32x32", "encoder.level2.conv1", "measured here"):
        assert word in text
    assert f"{data['conventions']['torchstat']['flops']:,} flops" in text


def test_the_model_is_left_as_it_was():
    model = unet(base=4, levels=1).train()
    model.head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    profile(model, X, budget_s=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.head.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_odd_models():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.unused = nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(inplace=True), nn.Linear(9, 9)

        def forward(self, x):
            return {"twice": self.act(self.conv(self.act(self.conv(x)))) + 1}

    result = profile(Odd(), X, budget_s=0)
    rows = {row.layer.name: row for row in result.rows}
    assert rows["conv"].layer.calls == 2
    assert rows["unused"].timing is None
    assert rows["(model)"].layer.launches == 1
    assert "unused" in str(result)
    empty = profile(Odd(), torch.randn(0, 3, 32, 32), budget_s=0)
    assert empty.macs == 0
    half = profile(Odd().bfloat16(), X.bfloat16(), budget_s=0)
    assert half.dtype == "bfloat16"
    assert profile(nn.DataParallel(Odd()), X, budget_s=0).macs == result.macs


def test_data_sheets_and_measured_peaks():
    sheet = data_sheet("NVIDIA H200", torch.bfloat16)
    assert sheet is not None
    assert (sheet.gflops, sheet.gbytes_s) == (989e3, 4800)
    assert "data sheet" in sheet.source
    assert data_sheet("NVIDIA H100 PCIe", torch.bfloat16).gflops == 756e3
    assert data_sheet("Tesla T4", torch.bfloat16) is None
    assert data_sheet("Somebody's GPU", torch.float32) is None
    here = peaks("cpu")
    assert here.gflops > 1
    assert here is peaks("cpu")  # measured once in a process
    assert "1 thread:" in here.source
