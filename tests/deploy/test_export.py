"""Exports: what was written computes what the model computes, at every size of the open axes, or nothing is written."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.deploy import export, open_file
from leanconv.errors import BadInput, ExportMismatch, MissingExtra, UnknownName
from leanconv.models.unet import unet

onnx = pytest.importorskip("onnx", reason="needs the export extra: onnx")
pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
pytest.importorskip("openvino", reason="needs the export extra: openvino")

room, place = import_module("leanconv.deploy.export"), import_module("leanconv.deploy.place")
SUFFIXES = [".onnx", ".xml", ".pt2"]


class Tiny(nn.Module):
    """Convolution, BatchNorm with statistics of its own, the ceil-mode average of strided operators, dropout."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.drop = nn.AvgPool2d(2, ceil_mode=True), nn.Dropout(0.5)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.drop(self.pool(self.norm(self.conv(x)).relu()))


def opens_ceil_mode():
    """Whether a program of this PyTorch takes even sizes where it was traced at odd ones: 2.11 guards against them."""
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    pool = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True))
    program = torch.export.export(pool, (torch.randn(1, 1, 11, 9),), dynamic_shapes=(sizes,))
    try:
        return program.module()(torch.randn(1, 1, 8, 8)).shape == (1, 1, 4, 4)
    except AssertionError:
        return False


class Nested(nn.Module):
    """Two inputs, one by name; a dict with constants among its tensors, whole numbers too."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x, *, scale, flip=False):
        y = self.conv(x) * scale[:, None, None, None]
        return {"map": y.flip(-1) if flip else y, "best": y.argmax(1), "stride": 1, "rest": (y.mean((2, 3)), None)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_axis_may_be_open(suffix, tmp_path):
    model = Tiny()  # in train mode, as a user may hold it
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if suffix == ".pt2" and not opens_ceil_mode():
        with pytest.raises(ExportMismatch, match=r"does not run at .*Guard failed.*nothing was written"):
            export(model, torch.randn(1, 3, 8, 8), tmp_path / f"m{suffix}", dynamic=("batch", "height", "width"))
        assert not list(tmp_path.iterdir())
        return
    result = export(model, torch.randn(1, 3, 8, 8), tmp_path / f"m{suffix}", dynamic=("batch", "height", "width"))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert {v.sizes.batch for v in result.verified} == {1, 2, 5}
    assert any(v.sizes.height % 2 for v in result.verified)  # an odd size: ceil mode was looked at
    assert "5x11x9" in str(result)
    # The user opens it by himself, at sizes that were never looked at.
    runtime, x = open_file(tmp_path / f"m{suffix}"), torch.randn(3, 3, 21, 14)
    torch.testing.assert_close(runtime(x), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in result.files)
    assert result.to_dict()["max_relative_error"] <= result.tolerance <= 1e-3


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nested_calls_and_answers(suffix, tmp_path):
    inputs = {"x": torch.randn(2, 3, 4, 4), "scale": torch.rand(2), "flip": True}
    result = export(Nested(), inputs, tmp_path / f"m{suffix}")
    assert len(result.verified) == 3
    if suffix != ".pt2":
        assert set(result.inputs) >= {"input0", "input1"} or set(result.inputs) >= {"x", "scale"}


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["conv", "splconv(alpha=0.5)", "spconv", "hetconv(part=4)"])
def test_unet_of_every_operator(conv, tmp_path):
    model = unet(base=8, levels=1, conv=conv)
    result = export(model, torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", dynamic=("batch", "height", "width"))
    assert {v.sizes.height for v in result.verified} == {8, 10, 14}  # the step of 2 was found, not told
    names = [d.dim_param for d in onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim]
    assert names == ["batch", "", "height", "width"]


class Forgets(nn.Module):
    """Right at the traced batch size and wrong at any other one: the size becomes a constant of the program."""

    def forward(self, x):
        return x * float(int(x.shape[0] == 1) + 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_program_that_differs_is_not_written(suffix, tmp_path, monkeypatch):
    old = tmp_path / f"m{suffix}"
    old.write_text("old")
    (tmp_path / "m.bin").write_text("old weights")
    real = room._write

    def sabotaged(plain, *arguments):
        wrong = Tiny().eval()
        wrong.load_state_dict(plain.state_dict())
        with torch.no_grad():
            wrong.conv.weight[0, 0, 0, 0] += 0.01
        return real(wrong, *arguments)

    monkeypatch.setattr(room, "_write", sabotaged)
    with pytest.raises(ExportMismatch, match="differs from the model"):
        export(Tiny(), torch.randn(1, 3, 8, 8), old)
    assert old.read_text() == "old"
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {old.name: "old", "m.bin": "old weights"}


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_forward_that_depends_on_the_batch_is_refused(suffix, tmp_path):
    with pytest.raises((ExportMismatch, BadInput)):
        export(Forgets(), torch.randn(1, 3, 8, 8), tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())


def test_the_task_metric_must_match(tmp_path):
    images = torch.randn(6, 3, 8, 8)

    def check(model):
        assert next(model.parameters()).device.type == "cpu"
        return {"mean": float(model(images).double().mean())}

    result = export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", check=check)
    assert result.metrics["mean"][0] == pytest.approx(result.metrics["mean"][1], abs=1e-5)
    answers = iter([0.5, 0.503])
    with pytest.raises(ExportMismatch, match=r"0\.5030, the model's 0\.5000"):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "n.onnx", check=lambda model: next(answers))
    answers = iter([0.5, float("nan")])
    with pytest.raises(ExportMismatch):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "n.onnx", check=lambda model: next(answers))
    answers = iter([{"IoU": 0.5}, {"IoU": 0.5, "Dice": 0.6}])
    with pytest.raises(ExportMismatch, match="Dice"):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "n.pt2", check=lambda model: next(answers))
    for nothing, says in (({}, "nothing was compared"), (None, "check gave None"), ("good", "check gave 'good'")):
        with pytest.raises(BadInput, match=says):
            export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "n.pt2", check=lambda model, it=nothing: it)
    assert not list(tmp_path.glob("n.*"))


@pytest.mark.parametrize("suffix", [".pt2", ".xml"])
def test_exports_on_several_threads(suffix, tmp_path):
    """Converters change the whole process while they run: in turns they leave it, and one place, as they should."""
    stderr, x = sys.stderr, torch.randn(1, 3, 8, 8)
    models = [Tiny() for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda model: export(model, x, tmp_path / f"m{suffix}"), models))
    assert sys.stderr is stderr
    found = open_file(tmp_path / f"m{suffix}")(x)
    assert sum(torch.allclose(found, model.eval()(x), atol=1e-5) for model in models) == 1


def test_bad_words(tmp_path):
    x = torch.randn(1, 3, 8, 8)
    with pytest.raises(UnknownName, match=r"\.onnx .*\.xml .*\.pt2"):
        export(Tiny(), x, tmp_path / "m.tflite")
    with pytest.raises(UnknownName, match="known: batch, height, width"):
        export(Tiny(), x, tmp_path / "m.onnx", dynamic=("time",))
    with pytest.raises(BadInput, match="no input of shape"):
        export(nn.Linear(3, 2), torch.randn(1, 3), tmp_path / "m.onnx", dynamic=("height",))
    with pytest.raises(BadInput, match="empty"):
        export(Tiny(), x[:0], tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="does not run on inputs"):
        export(Tiny(), torch.randn(1, 5, 8, 8), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="takes no height but 8"):
        export(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), x, tmp_path / "m.onnx", dynamic=("height",))
    for dtype in (torch.bfloat16, torch.float64):
        with pytest.raises(BadInput, match=r"export\(model\.float\(\)"):
            export(Tiny().to(dtype), x.to(dtype), tmp_path / "m.onnx")
    with pytest.raises(BadInput, match="call it once first"):
        export(nn.LazyConv2d(4, 3), x, tmp_path / "m.onnx")
    broken = Tiny()
    with torch.no_grad():
        broken.conv.weight.fill_(float("nan"))
    with pytest.raises(BadInput, match="NaN"):
        export(broken, x, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_forward_that_decides_by_values_gets_one_line(tmp_path, capfd):
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.mean() > 0 else x

    with pytest.raises(BadInput, match="decides by the values of a tensor"):
        export(Decides(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_shapes_that_the_converter_froze(tmp_path):
    export(nn.BatchNorm2d(3, track_running_stats=False), torch.randn(2, 3, 8, 8), tmp_path / "m.onnx", dynamic=())


def test_an_optimised_model_is_refused(tmp_path):
    model = Tiny()
    model.optimized_by_leanconv = True
    with pytest.raises(BadInput, match=r"model\.original"):
        export(model, torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")


def test_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="cannot be written"):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "file" / "m.onnx")
    (tmp_path / "dir.onnx").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "dir.onnx")

    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "m.onnx").write_text("old")
    monkeypatch.setattr(room, "save_onnx", lambda *a, **k: full())
    with pytest.raises(BadInput, match="No space left on device"):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(place.os, "fsync", full)
    with pytest.raises(BadInput, match="No space left on device"):
        export(Tiny(), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.onnx", "file", "m.onnx"]


def test_a_move_that_fails_half_way_restores_the_old_pair(tmp_path, monkeypatch):
    old = {"m.xml": "old", "m.bin": "old weights"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    replace = place.Path.replace

    def fails(self, target):
        if self.name == "m.xml" and self.parent.name.startswith(".export-"):
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(place.Path, "replace", fails)
    with pytest.raises(BadInput, match="Input/output error"):
        export(nn.Conv2d(3, 2, 1), torch.randn(1, 3, 8, 8), tmp_path / "m.xml")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == old


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_torchscript_is_told_apart(suffix, tmp_path):
    x = torch.randn(1, 3, 8, 8)
    layer = nn.Conv2d(3, 2, 1).eval()
    traced, scripted = torch.jit.trace(layer, x), torch.jit.script(layer)
    for model, which in [(traced, "the model"), (scripted, "the model"), (nn.Sequential(scripted), "layer '0'")]:
        with pytest.raises(BadInput, match=rf"{which} is TorchScript.*give what it was made from"):
            export(model, x, tmp_path / f"m{suffix}")


@pytest.mark.parametrize("library", ["onnx", "onnxscript"])
def test_what_onnx_needs_is_known_before_the_model_is_captured(library, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setattr(room, "capture_flat", lambda *a, **k: pytest.fail("captured in vain"))
    with pytest.raises(MissingExtra, match=f"{library} is not installed"):
        export(nn.Conv2d(3, 2, 1), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_killed_export_leaves_no_file(tmp_path):
    code = (
        "import importlib, time, torch\n"
        "e = importlib.import_module('leanconv.deploy.export')\n"
        "e.move_into_place = lambda *a: (print('drafted', flush=True), time.sleep(60))\n"
        f"e.export(torch.nn.Conv2d(3, 2, 1), torch.randn(1, 3, 4, 4), {str(tmp_path / 'm.pt2')!r})\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline().strip() == "drafted"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    time.sleep(0.05)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith(".export-")]


def test_weights_in_a_second_file(tmp_path, monkeypatch):
    """What torch.onnx does over 2 GB, forced here: both files arrive, and the main one finds the other."""
    real = torch.onnx.ONNXProgram.save
    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", lambda self, path: real(self, path, external_data=True))
    model = nn.Conv2d(16, 64, 3)
    result = export(model, torch.randn(1, 16, 8, 8), tmp_path / "m.onnx")
    assert [p.name for p in result.files] == ["m.onnx", "m.onnx.data"]
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(open_file(tmp_path / "m.onnx")(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_channels_last_and_strided_inputs(tmp_path):
    x = torch.randn(2, 3, 8, 16)[..., ::2].to(memory_format=torch.channels_last)
    export(Tiny().to(memory_format=torch.channels_last), x, tmp_path / "m.onnx")
    runtime = open_file(tmp_path / "m.onnx")
    torch.testing.assert_close(runtime(x), runtime(x.contiguous()))


def test_an_output_that_is_the_input(tmp_path):
    class Same(nn.Module):
        def forward(self, x):
            return x, F.relu(x)

    for suffix in SUFFIXES:
        export(Same(), torch.randn(1, 3, 4, 4), tmp_path / f"m{suffix}")
