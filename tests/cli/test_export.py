"""`leanconv export RUN --raw` and MODEL: outputs and IoU on the validation split must match, or nothing is written."""

import json
from importlib import import_module

import pytest
import torch
from torch import nn

from leanconv.models.unet import unet
from leanconv.runs import RunFolder

pytest.importorskip("onnxruntime", reason="needs the export extra: onnxruntime")
pytest.importorskip("PIL", reason="needs the train extra: pillow")

RECIPE = """
model = "leanconv:unet?base=4&levels=1"
data = "synthetic:wafer?size=48&count=30"
size = 32
steps = 1
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder as training leaves it, with a U-Net that says something: its head's bias lies at the threshold."""
    torch.manual_seed(0)
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.write_model("leanconv:unet?base=4&levels=1")
    model = unet(base=4, levels=1).eval()
    with torch.no_grad():
        image = torch.rand(1, 3, 32, 32)
        model.head.bias -= model(image).median()
    folder.save_model(model)
    folder.recipe.write_text(RECIPE)
    folder.metrics.write_text('{"threshold": 0.4}\n')
    return folder


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_a_run_with_its_scores(run, leanconv, tmp_path, suffix):
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="needs the export extra: openvino")
    code, out, err = leanconv("export", run.path, tmp_path / f"m{suffix}", "--raw", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["dynamic"] == ["batch", "height", "width"]
    assert set(found["metrics"]) == {"val IoU", "val Dice", "val mean IoU"}
    assert 0 < found["metrics"]["val Dice"]["model"] < 1  # a score that could change
    assert (tmp_path / f"m{suffix}").is_file()


def test_fixed_sizes_see_the_images_in_pieces(run, leanconv, tmp_path):
    code, out, err = leanconv(
        "export", run.path, tmp_path / "m.onnx", "--raw", "--dynamic", "none", "--input", "2,3,32,32"
    )
    assert code == 0, err
    assert "val Dice" in out
    assert "dynamic axes: none" in out


def test_other_scores_are_refused(run, leanconv, tmp_path, monkeypatch):
    """The outputs match on random inputs; the file is then replaced by one that shifts the logits of real images."""
    room = import_module("leanconv.deploy.export")
    real = room.metrics_of

    class Shifted(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.device_tag = model, model.device_tag

        def forward(self, x):
            return self.model(x) + 0.5

    monkeypatch.setattr(
        room, "metrics_of", lambda check, plain, runtime, path: real(check, plain, Shifted(runtime).eval(), path)
    )
    code, _, err = leanconv("export", run.path, tmp_path / "m.onnx", "--raw")
    assert code == 1
    assert "nothing was written" in err
    assert "val IoU" in err
    assert not list(tmp_path.iterdir())


def test_a_model_reference(leanconv, tmp_path):
    words = ("leanconv:unet", "base=4", "levels=1", tmp_path / "m.onnx", "--input", "1,3,8,8", "--dynamic", "batch")
    code, out, err = leanconv("export", *words)
    assert code == 0, err
    assert "5x8x8" in out


def test_one_line_for_what_is_wrong(run, leanconv, tmp_path):
    code, _, err = leanconv("export", run.path, tmp_path / "m.tflite")
    assert (code, len(err.splitlines())) == (2, 1)
    assert ".onnx" in err
    code, _, err = leanconv("export", tmp_path / "nothing", tmp_path / "m.onnx")
    assert code != 0
    assert "Traceback" not in err
    bare = RunFolder(tmp_path / "bare")
    bare.write_model("leanconv:unet?base=4&levels=1")
    bare.save_model(unet(base=4, levels=1))
    code, _, err = leanconv("export", bare.path, tmp_path / "m.onnx")
    assert code == 1
    assert "--outputs-only" in err
    code, _, err = leanconv("export", bare.path, tmp_path / "m.onnx", "--outputs-only", "--input", "1,3,8,8")
    assert code == 0, err
