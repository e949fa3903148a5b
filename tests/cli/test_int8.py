"""`export --int8` and `optimize --int8`: labelled runs, images alone, refusals; infer.py beside the file."""

import inspect
import json

import numpy as np
import pytest
import torch

from leanconv.cli import export, optimize
from leanconv.deploy.int8 import MAX_LOSS
from tests.cli.test_export_run import ALONE, infer, photos, same_masks, segmenter  # noqa: F401

for _name in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(_name, reason=f"needs the export extra: {_name}")
Image = pytest.importorskip("PIL.Image", reason="needs the train extra: pillow")


@pytest.fixture
def alone(tmp_path):
    """A folder of images without labels."""
    folder, random = tmp_path / "alone", np.random.default_rng(0)
    folder.mkdir()
    for index in range(9):
        Image.fromarray(random.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def spoilt(run):
    """The same run with one channel of its first layer 10,000 times as large, and used as much less."""
    model = run.load_model()
    state = model.state_dict()
    convs = [name for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d)]
    first, second = convs[:2]
    norms = [name for name, each in model.named_modules() if isinstance(each, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        state[f"{norms[0]}.weight"][1] *= 1e4
        state[f"{norms[0]}.bias"][1] *= 1e4
        state[f"{second}.weight"][:, 1] /= 1e4
    model.load_state_dict(state)
    run.save_model(model)
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_a_runs_file_in_int8_and_infer(leanconv, photos, tmp_path, suffix):  # noqa: F811
    run = segmenter(tmp_path / "run")
    path = tmp_path / "ship" / f"model{suffix}"
    code, out, err = leanconv("export", run.path, path, "--int8", "--max-loss", "0.05", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert list(found["metrics"]) == ["val Dice"]
    dice = found["metrics"]["val Dice"]
    assert found["int8"]["loss"] == pytest.approx(dice["model"] - dice["file"])
    assert 0 < dice["file"] < 1
    assert found["int8"]["calibration_pictures"] > 5
    script = tmp_path / "ship" / "infer.py"
    assert infer(script, photos, "--out", tmp_path / "masks") == (0, "", [])
    assert leanconv("predict", run.path, photos, "--out", tmp_path / "predicted")[0] == 0
    same = total = 0
    for mask in (tmp_path / "masks").iterdir():
        ours = np.asarray(Image.open(tmp_path / "predicted" / mask.name)) > 0
        same, total = same + int((ours == (np.asarray(Image.open(mask)) > 0)).sum()), total + ours.size
    assert 0.9 < same / total < 1  # an int8 network, and the same one


@pytest.mark.slow
def test_a_run_that_int8_spoils_is_refused_with_the_layer(leanconv, alone, tmp_path):
    run = segmenter(tmp_path / "run")
    _, layer = spoilt(run)
    code, _, err = leanconv("export", run.path, tmp_path / "ship" / "model.xml", "--int8", "--data", alone)
    assert code == 1
    assert "of Dice with the float masks, which is" in err
    assert f"int8 costs most in network.{layer} (" in err
    assert list((tmp_path / "ship").iterdir()) == []


@pytest.mark.slow
def test_images_without_labels_are_judged_by_agreement(leanconv, alone, tmp_path):
    run = segmenter(tmp_path / "run")
    path = tmp_path / "model.xml"
    code, out, err = leanconv("export", run.path, path, "--int8", "--data", alone, "--max-loss", "0.2", "--json")
    assert code == 0, err
    found = json.loads(out)
    agreed = found["metrics"]["Dice with the float masks"]
    assert agreed["model"] == 1
    assert 0.8 < agreed["file"] <= 1
    assert found["int8"]["of"] == "Dice with the float masks"


@pytest.mark.slow
def test_a_model_in_int8(leanconv, alone, tmp_path):
    words = ("leanconv:unet", "base=4", "levels=1")
    path = tmp_path / "model.onnx"
    code, out, err = leanconv(
        "export", *words, path, "--int8", "--data", alone, "--input", "1,3,32,32", "--max-loss", ".1", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["int8"]["of"] == "relative squared error"
    code, out, err = leanconv(
        "optimize", *words, "--int8", "--data", alone, "--input", "1,3,32,32", "--engines", "folded,onnxruntime",
        "--max-loss", ".1", "--json",
    )  # fmt: skip
    assert code == 0, err
    rows = {f"{row['engine']} {row['dtype']}".strip(): row for row in json.loads(out)["choices"]}
    assert 0 < rows["onnxruntime int8"]["error"] <= rows["onnxruntime int8"]["tolerance"] == 0.1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "leanconv:unet", "base=4", "a.onnx", "--max-loss", ".1"), "--max-loss is for --int8"),
        (("export", "leanconv:unet", "base=4", "a.onnx", "--int8"), "--int8 takes its ranges from images: give --data"),
        (("export", "leanconv:unet", "base=4", "a.pt2", "--int8", "--data", "ALONE"), "int8 files are .onnx or .xml"),
        (("optimize", "leanconv:unet", "base=4", "--data", "x"), "--data is for --int8"),
        (("optimize", "leanconv:unet", "base=4", "--int8"), "--int8 takes its ranges from images: give --data"),
        (("optimize", "leanconv:unet", "base=4", "--int8", "--dtype", "bfloat16"), "one second type at a time"),
    ],
    ids=range(6),
)
def test_what_cannot_be_is_one_line(leanconv, alone, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = leanconv(*[str(alone) if word == "ALONE" else word for word in words])
    assert (code, out) == (1, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]


def test_a_run_without_data_needs_some(leanconv, tmp_path):
    run = segmenter(tmp_path / "run")
    run.recipe.unlink()
    code, _, err = leanconv("export", run.path, tmp_path / "a.onnx", "--int8")
    assert code == 1
    assert err.strip().endswith("does not name its training data: give --data")  # --outputs-only would not help


@pytest.mark.parametrize("command", [export.command, optimize.command])
def test_the_limit_is_the_librarys(command):
    assert inspect.signature(command).parameters["max_loss"].default == MAX_LOSS
