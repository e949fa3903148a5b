"""`leanconv plan` and `leanconv convert`, as a user types them."""

import json

import pytest
import torch

from leanconv.convert import Plan
from leanconv.nn import SPLConv2d
from leanconv.runs import load

UNET = ["leanconv:unet", "base=4", "levels=2", "--input", "1,3,32,32"]


def test_plan_prints_saves_and_speaks_json(leanconv, tmp_path):
    path = tmp_path / "plan.json"
    code, out, err = leanconv("plan", *UNET, "--to", "splconv(alpha=0.5)", "--out", path)
    assert (code, err) == (0, "")
    assert "convolutions change" in out
    assert "first convolution" in out
    saved = Plan.load(path)
    code, out, _ = leanconv("plan", *UNET, "--to", "splconv(alpha=0.5)", "--json")
    assert json.loads(out) == json.loads(json.dumps(saved.to_dict()))
    code, out, _ = leanconv("plan", *UNET, "--to", "hetconv(part=2)", "--where", saved.swapped[0].name, "--json")
    assert [row["name"] for row in json.loads(out)["layers"] if row["to"]] == [saved.swapped[0].name]


def test_convert_writes_a_run_folder_that_loads(leanconv, tmp_path):
    plan, folder = tmp_path / "plan.json", tmp_path / "run"
    leanconv("plan", *UNET, "--to", "splconv", "--out", plan)
    code, out, err = leanconv("convert", *UNET, "--plan", plan, "--out", folder)
    assert (code, err) == (0, "")
    assert "written" in out
    model = load(folder)
    assert sum(isinstance(m, SPLConv2d) for m in model.modules()) == len(Plan.load(plan).swapped)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)
    code, _, err = leanconv("convert", *UNET, "--to", "splconv", "--out", folder)
    assert code == 1
    assert "holds a model already" in err


def test_convert_fits_on_images(leanconv, tmp_path):
    words = ("convert", *UNET, "--to", "hetconv(part=2)", "--init", "fit", "--images", "12", "--json")
    data = "synthetic:wafer?size=32&count=40"
    code, out, err = leanconv(*words, "--data", data, "--out", tmp_path / "run")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert all(layer["error"] <= layer["error_before"] for layer in report["layers"])
    assert {layer["how"] for layer in report["layers"]} == {"fitted"}
    assert report["blocks"]
    assert report["output_error"] < 1
    model, x = load(tmp_path / "run").eval(), torch.rand(1, 3, 32, 32)
    assert model(x).isfinite().all()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--init", "fit"], "--init fit needs --data DIR"),
        (["--data", "synthetic:wafer"], "--data needs --init fit: leave it out"),
        (["--images", "7"], "--images needs --init fit: leave it out"),
        (["--split", "test"], "--split needs --init fit: leave it out"),
        (["--init", "fit", "--data", "/no/such"], "/no/such"),
        (["--init", "fit", "--data", "synthetic:wafer", "--input", "1,3,32,64"], "colour images as squares"),
    ],
)
def test_convert_says_what_a_fit_needs(leanconv, tmp_path, words, text):
    code, _, err = leanconv("convert", *UNET, "--to", "hetconv(part=2)", "--out", tmp_path / "run", *words)
    assert code == 1
    assert text in err
    assert not (tmp_path / "run" / "model.json").exists()


def test_projected_weights_survive_and_a_second_swap_adds_up(leanconv, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    code, out, _ = leanconv("convert", *UNET, "--to", "hetconv(part=1)", "--out", first, "--json")
    report = json.loads(out)
    names = [layer["name"] for layer in report["layers"]]
    assert code == 0
    assert {layer["how"] for layer in report["layers"]} == {"projected"}
    assert max(layer["error"] for layer in report["layers"]) < 1e-5
    start = json.loads((first / "model.json").read_text())["reference"]
    assert start.startswith("leanconv:unet")
    code, _, err = leanconv("convert", first, "--input", "1,3,32,32", "--to", "conv", "--where", "*", "--out", second)
    assert (code, err) == (0, "")
    swaps = dict(json.loads((second / "model.json").read_text())["swaps"])
    assert set(names) < set(swaps)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load(first)(x), load(second)(x), atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["plan", *UNET, "--to", "splcnv"], 2, "did you mean 'splconv'"),
        (["plan", *UNET], 2, "--to"),
        (["plan", "timm:nothing", "--to", "splconv"], (1, 2), "nothing"),
        (["plan", *UNET[:-1], "1,7,32,32", "--to", "splconv"], 1, "C=3, got (1, 7, 32, 32)"),
        (["plan", *UNET, "--to", "splconv", "--where", "nowhere"], 1, "matches no convolution"),
        (["convert", *UNET, "--out", "x"], 1, "choose what to swap"),
        (["convert", *UNET, "--to", "conv", "--plan", "p", "--out", "x"], 1, "choose what to swap"),
        (["convert", *UNET, "--plan", "none.json", "--out", "x"], 1, "none.json: cannot be read"),
        (["convert", *UNET, "--to", "conv", "--init", "fit", "--out", "x"], 1, "--data DIR"),
        (["convert", *UNET, "--to", "conv", "--init", "fits", "--out", "x"], 2, "fits"),
    ],
)
def test_mistakes_get_one_clear_line(leanconv, tmp_path, monkeypatch, words, code, text):
    monkeypatch.chdir(tmp_path)
    got, _, err = leanconv(*words)
    assert got in (code if isinstance(code, tuple) else (code,))
    assert text in err
    assert "Traceback" not in err
    assert not (tmp_path / "x").exists()
