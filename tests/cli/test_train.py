"""`leanconv train` and `leanconv eval`: what a user types, what comes out, and with which exit status."""

import json
import signal

import pytest

from leanconv.train import loop


@pytest.fixture
def recipe(tiny_data, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"model = 'leanconv:unet?base=4&levels=2'\ndata = '{tiny_data}'\nout = '{tmp_path / 'run'}'\n"
        "size = 24\nbatch = 5\nsteps = 6\nlr = 0.01\ndevice = 'cpu'\nthreads = 1\n"
    )
    return path


def test_train_then_eval(leanconv, recipe, tmp_path):
    status, out, err = leanconv("train", recipe, "steps=8")
    assert status == 0
    assert "8 steps of 5" in err
    assert "leanconv export" in out
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{stored['test']['image_dice']:.4f}" in out
    status, out, err = leanconv("eval", tmp_path / "run", "--split", "test", "--json", "--per-image")
    report = json.loads(out)
    assert status == 0
    assert len(report.pop("per_image")) == 5
    assert report == {"run": str(tmp_path / "run"), "split": "test", **stored["test"]}
    status, out, _ = leanconv("eval", tmp_path / "run", "--threshold", "0.9", "--out", tmp_path / "scores.json")
    assert "threshold 0.90" in out
    assert json.loads((tmp_path / "scores.json").read_text())["threshold"] == 0.9


def test_train_json(leanconv, recipe, tmp_path):
    status, out, err = leanconv("train", recipe, "--json", "--quiet")
    assert (status, err) == (0, "")
    assert json.loads(out)["run"] == str(tmp_path / "run")
    assert json.loads(out)["steps"] == 6


def test_eval_chooses_a_threshold_where_none_is_stored(leanconv, recipe, tmp_path):
    leanconv("train", recipe, "--quiet")
    metrics = tmp_path / "run" / "metrics.json"
    stored = json.loads(metrics.read_text())
    metrics.unlink()
    status, out, _ = leanconv("eval", tmp_path / "run", "--json")
    assert status == 0
    assert json.loads(out)["threshold"] == stored["threshold"]
    keys = ("threshold", "thresholds", "min_area", "merge", "threshold_curve")
    assert json.loads(metrics.read_text()) == {key: stored[key] for key in keys}


def test_two_logits_of_an_older_run_need_no_threshold(leanconv, recipe, tmp_path):
    """It stored null: the largest logit wins, every component is a defect."""
    words = (recipe, "--quiet", "loss=ce", "model=leanconv:unet?base=4&levels=2&out_channels=2")
    assert leanconv("train", *words)[0] == 0
    (tmp_path / "run" / "metrics.json").write_text('{"threshold": null}')
    stored = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert stored["threshold"] is None
    status, out, _ = leanconv("eval", tmp_path / "run", "--json")
    assert status == 0
    assert (json.loads(out)["threshold"], json.loads(out)["min_area"]) == (None, 0)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == stored


def test_stopped_and_resumed_as_the_message_says(leanconv, recipe, tmp_path, monkeypatch):
    real = loop._Run._step

    def step(self, *batch):
        real(self, *batch)
        if self.state.step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop._Run, "_step", step)
    status, _, err = leanconv("train", recipe)
    assert status == 1
    assert f"go on with: leanconv train {tmp_path / 'run'} --resume" in err
    assert "Traceback" not in err
    monkeypatch.setattr(loop._Run, "_step", real)
    moved = tmp_path / "moved"
    (tmp_path / "run").rename(moved)
    status, out, err = leanconv("train", moved, "--resume")
    assert status == 0
    assert str(moved) in out
    assert not (tmp_path / "run").exists()
    whole = tmp_path / "whole"
    assert leanconv("train", recipe, f"out={whole}", "--quiet")[0] == 0
    assert (moved / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["bacth=4"], 2, "did you mean 'batch'?"),
        (["batch=four"], 1, "batch takes a whole number"),
        (["model=leanconv:unet?conv=splonv"], 2, "did you mean 'splconv'?"),
        (["model=leanconv:unet?base=4&levels=3", "size=20"], 1, "multiples of 8"),
        (["data=nowhere"], 1, "nowhere"),
        (["--resume"], 1, "holds no run to resume"),
        (["lr=1e6", "optimizer=sgd", "warmup=0", "steps=50"], 1, "not finite"),
    ],
)
def test_one_clear_line(leanconv, recipe, words, status, message):
    got, out, err = leanconv("train", recipe, "--quiet", *words)
    assert got == status
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""


def test_a_recipe_that_names_code(leanconv, recipe, tmp_path):
    code = tmp_path / "net.py"
    code.write_text("import torch\n\n\ndef net():\n    return torch.nn.Conv2d(3, 1, 3, padding=1)\n")
    recipe.write_text(recipe.read_text().replace("leanconv:unet?base=4&levels=2", f"{code}:net"))
    status, _, err = leanconv("train", recipe, "--quiet")
    assert status == 1
    assert "--trust-code" in err
    assert not (tmp_path / "run").exists()
    assert leanconv("train", recipe, "--quiet", f"model={code}:net")[0] == 0  # typed, so meant
    assert leanconv("eval", tmp_path / "run")[0] == 1
    assert leanconv("eval", tmp_path / "run", "--trust-code")[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("[]", "holds list"), ('{"threshold": "high"}', "threshold='high'")],
)
def test_a_damaged_metrics_file(leanconv, recipe, tmp_path, content, message):
    leanconv("train", recipe, "--quiet")
    (tmp_path / "run" / "metrics.json").write_text(content)
    status, _, err = leanconv("eval", tmp_path / "run")
    assert status == 1
    assert message in err


def test_eval_refuses(leanconv, tmp_path):
    assert leanconv("eval", tmp_path)[0] == 1
    assert "no run folder" in leanconv("eval", tmp_path)[2]


def test_help(leanconv):
    for command in ("train", "eval"):
        status, out, _ = leanconv(command, "--help")
        assert status == 0
        assert "--json" in out
