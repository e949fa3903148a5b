"""`export` in int8: a file that says what it lost, or none."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from leanconv.deploy import export, open_file
from leanconv.deploy.int8.export import Int8, _worst
from leanconv.errors import BadInput, ExportMismatch
from tests.deploy.int8.networks import built

for _name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_name, reason=f"needs the export extra: {_name}")

SUFFIXES = [".onnx", ".xml"]


def facts(path):
    """What the file says of itself."""
    if path.suffix == ".onnx":
        import onnx

        said = {each.key: each.value for each in onnx.load(path).metadata_props}
        return said["origin"], json.loads(said["leanconv"])
    from leanconv.deploy.openvino import openvino_core

    model = openvino_core().read_model(str(path))
    return model.get_rt_info(["origin"]).value, json.loads(model.get_rt_info(["leanconv"]).value)


def weights(path):
    return path.with_suffix(".bin") if path.suffix == ".xml" else path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_is_smaller_and_says_what_it_lost(suffix, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)).eval()
    x, data = torch.rand(2, 3, 16, 16), [torch.rand(3, 3, 16, 16), torch.rand(2, 3, 24, 16)]
    path, plain = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    axes = ("batch", "height", "width")
    found = export(model, x, path, dynamic=axes, dtype=torch.int8, data=data)
    export(model, x, plain, dynamic=axes)
    assert weights(path).stat().st_size < 0.75 * weights(plain).stat().st_size
    origin, said = facts(path)
    assert "leanconv" in origin
    assert said["int8"] == found.int8.to_dict()
    assert said["int8"]["calibration_pictures"] == 5
    assert 0 < found.int8.loss <= found.int8.limit == 0.005
    assert found.int8.how == "relative squared error"
    assert "before int8" in " ".join(str(found).split())
    assert "calibrated on 5 pictures" in " ".join(str(found).split())
    seen = torch.rand(1, 3, 40, 33)
    with torch.no_grad():
        y = model(seen)
        error = float((open_file(path)(seen) - y).square().sum() / (y - y.mean()).square().sum())
    assert 0 < error < 0.005
    assert {each.name for each in tmp_path.iterdir()} == {each.name for p in (path, plain) for each in (p, weights(p))}


WITHOUT_VNNI = """
import sys, torch
from leanconv.deploy import open_file
x, y = torch.load(sys.argv[2])
seen = open_file(sys.argv[1])(x)
print(float((seen - y).square().sum() / (y - y.mean()).square().sum()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("bits", [7, 8])
def test_a_file_overflows_on_no_processor(bits, tmp_path, monkeypatch):
    """Large maps times large weights: with weights of 8 bits the error is above 1 there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 16, 3, padding=1)).eval()
    for layer in model[::2]:
        layer.weight.data.abs_().mul_(0.1).add_(0.1)
    x = torch.rand(4, 8, 16, 16) * 0.1 + 0.9
    if bits == 8:
        monkeypatch.setattr("leanconv.deploy.int8.export.WEIGHT_BITS", (8,))
    found = export(model, x[:1], tmp_path / "a.xml", dtype=torch.int8, data=x, max_loss=0.005 if bits == 7 else 100.0)
    assert f"weights of {bits} bits" in found.int8.by
    with torch.no_grad():
        torch.save((x[:1], model(x[:1])), tmp_path / "call.pt")
    words = [sys.executable, "-c", WITHOUT_VNNI, str(tmp_path / "a.xml"), str(tmp_path / "call.pt")]
    said = subprocess.run(
        words, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True
    )
    assert (0 < float(said.stdout) < 0.005) if bits == 7 else float(said.stdout) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_weights_get_8_bits_where_7_lose_too_much(suffix, tmp_path):
    seen = []

    def check(form):
        seen.append(form)
        return 0.9 if len(seen) in (1, {".onnx": 3, ".xml": 4}[suffix]) else 0.8

    path = tmp_path / f"a{suffix}"
    found = export(
        built(), torch.rand(1, 3, 16, 16), path, dtype=torch.int8, data=torch.rand(4, 3, 16, 16), check=check
    )
    assert "weights of 8 bits" in found.int8.by
    assert found.int8.loss == 0
    assert {each.name for each in tmp_path.iterdir()} == {path.name, weights(path).name}
    if suffix == ".onnx":
        import onnx

        packed = [onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
        assert max(abs(each.astype(int)).max() for each in packed if each.dtype == "int8" and each.ndim == 4) == 127


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_that_loses_more_is_refused_and_an_old_one_stays(suffix, tmp_path):
    model, x, data = built(1000.0), torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16)
    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    said = r"int8 has a relative squared error of .*\(allowed 0.005\); int8 costs most in mid.0 \(.*nothing was written"
    with pytest.raises(ExportMismatch, match=said) as error:
        export(model, x, path, dtype=torch.int8, data=data)
    assert "\n" not in str(error.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "old"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_task_metric_decides(suffix, tmp_path):
    model, x, data = built(), torch.rand(1, 3, 16, 16), torch.rand(4, 3, 16, 16)
    seen = []

    def check(form):
        seen.append(form)
        with torch.no_grad():
            form(data[:1])
        return {"score": 0.9 if len(seen) == 1 else 0.88, "other": 0.5}

    with pytest.raises(ExportMismatch, match=r"int8 loses 0.02 of score, which is 0.8800 instead of 0.9000"):
        export(model, x, tmp_path / f"a{suffix}", dtype=torch.int8, data=data, check=check)
    seen.clear()
    found = export(model, x, tmp_path / f"a{suffix}", dtype=torch.int8, data=data, check=check, max_loss=0.03)
    assert (found.int8.how, found.int8.loss) == ("score", pytest.approx(0.02))
    assert found.metrics == {"score": (0.9, 0.88), "other": (0.5, 0.5)}
    assert "2.0e-02   3.0e-02" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", [1, 2])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_check_that_fails_is_named(suffix, fails_at, tmp_path):
    """It was told as a model that cannot become int8."""
    seen = []

    def check(form):
        seen.append(form)
        if len(seen) == fails_at:
            raise KeyError("labels")
        return 0.9

    with pytest.raises(BadInput, match=r"^check failed: KeyError: 'labels' \(test_export.py, line \d+, in check\)"):
        export(
            built(),
            torch.rand(1, 3, 16, 16),
            tmp_path / f"a{suffix}",
            dtype=torch.int8,
            data=torch.rand(4, 3, 16, 16),
            check=check,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"dtype": torch.int8}, "pass data="),
        ({"dtype": torch.int8, "data": torch.rand(1, 3, 8, 8)}, "only the number of rows may differ"),
        ({"dtype": torch.bfloat16}, "the model's own type, or torch.int8"),
        ({"data": torch.rand(1, 3, 16, 16)}, "data: for int8 alone"),
        ({"max_loss": 0.1}, "max_loss: for int8 alone"),
        ({"dtype": torch.int8, "data": torch.rand(1, 3, 16, 16), "max_loss": 0}, "must be a number above 0"),
    ],
    ids=["no data", "other shape", "bfloat16", "data alone", "max_loss alone", "no limit"],
)
def test_unusable_arguments_are_one_line(named, said, tmp_path):
    with pytest.raises(BadInput, match=said):
        export(built(), torch.rand(1, 3, 16, 16), tmp_path / "a.onnx", **named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), True, "a"])
def test_a_limit_that_is_none_is_refused_before_the_float_file_is_made(limit):
    with pytest.raises(BadInput, match="must be a number above 0"):
        Int8(torch.rand(1, 3, 8, 8), limit)


@pytest.mark.parametrize("unknown", [(math.nan, 0.9), (0.9, math.nan), (math.inf, 0.9)])
@pytest.mark.parametrize("first", [True, False])
def test_a_metric_that_is_not_finite_is_no_small_loss(unknown, first):
    known = {"known": (0.9, 0.899)}
    assert _worst({"unknown": unknown} | known if first else known | {"unknown": unknown}) == ("unknown", math.inf)


def test_torch_export_has_no_int8(tmp_path):
    with pytest.raises(BadInput, match=r"int8 files are .onnx or .xml"):
        export(built(), torch.rand(1, 3, 8, 8), tmp_path / "a.pt2", dtype=torch.int8, data=torch.rand(1, 3, 8, 8))
