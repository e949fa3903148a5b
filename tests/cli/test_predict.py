"""`leanconv predict`: the run's own threshold, its files, one line for a bad image, exit codes."""

import json

import numpy as np
import pytest
from PIL import Image

from leanconv.errors import BadInput
from leanconv.files import write_json
from leanconv.models import build
from leanconv.runs import RunFolder
from leanconv.train.synthetic.wafer import wafer


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_model("leanconv:unet?base=2&levels=2")
    folder.save_model(build("unet", base=2, levels=2))
    write_json(folder.metrics, {"threshold": 0.41})
    for i in range(3):
        Image.fromarray(wafer(i, 40)[0]).save(tmp_path / f"w{i}.png")
    return folder


def test_json_uses_the_stored_threshold(run, tmp_path, leanconv):
    images = [tmp_path / f"w{i}.png" for i in range(3)]
    code, out, err = leanconv(
        "predict", run.path, *images, "--out", tmp_path / "o", "--json", "--tile", "32", "--overlap", "8"
    )
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [image["threshold"] for image in report["images"]] == [0.41] * 3
    assert report["failed"] == []
    masks = [np.asarray(Image.open(tmp_path / "o" / f"w{i}_mask.png")) for i in range(3)]
    assert [int((mask > 0).sum()) for mask in masks] == [image["defect_area_px"] for image in report["images"]]


def test_one_bad_image_is_one_line_and_exit_1(run, tmp_path, leanconv):
    (tmp_path / "w1.png").write_bytes(b"nothing")
    images = [tmp_path / f"w{i}.png" for i in range(3)]
    code, out, err = leanconv("predict", run.path, *images, "--out", tmp_path / "o", "--threshold", "0.9")
    assert code == 1
    assert err.splitlines() == [err.strip()]
    assert err.startswith(f"error: {tmp_path / 'w1.png'}: not a readable")
    assert "2 of 3 images written" in out
    assert json.loads((tmp_path / "o" / "w2.json").read_text())["threshold"] == 0.9


def test_a_name_that_no_file_can_have_costs_no_other_image(run, tmp_path, leanconv):
    code, out, err = leanconv("predict", run.path, f"{'x' * 300}.png", tmp_path / "w0.png", "--out", tmp_path / "o")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "1 of 2 images written" in out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["norun", "x.png"], 1, "run folder does not exist"),
        (["{run}"], 2, "Missing argument"),
        (["{run}", "x.png", "--tile", "0"], 2, "--tile"),
        (["{run}", "{image}", "--threshold", "2"], 1, "--threshold 2: a number between 0 and 1"),
        (["{run}", "x.png"], 1, "error: x.png: cannot be opened: No such file or directory"),
    ],
)
def test_usage(run, leanconv, words, code, says, tmp_path):
    (tmp_path / "a.png").touch()
    found, _, err = leanconv("predict", *[word.format(run=run.path, image=tmp_path / "a.png") for word in words])
    assert found == code
    assert says in err
    assert "Traceback" not in err


def test_another_engine_finds_the_same_defects(run, tmp_path, leanconv):
    images = [tmp_path / f"w{i}.png" for i in range(3)]
    for engine in ("eager", "folded"):
        words = ["--out", tmp_path / engine, "--engine", engine, "--json"]
        code, out, err = leanconv("predict", run.path, *images, *words)
        assert code == 0, err
        assert json.loads(out)["seconds"] > 0
    assert err.startswith("engine folded: as asked, for 1x3x")
    for i in range(3):
        eager, folded = (np.asarray(Image.open(tmp_path / each / f"w{i}_mask.png")) for each in ("eager", "folded"))
        assert (eager != folded).mean() < 1e-3


def test_eval_scores_the_engines_masks(run, tiny_data, leanconv):
    scores = []
    for engine in ("eager", "folded"):
        code, out, err = leanconv("eval", run.path, "--data", tiny_data, "--engine", engine, "--json")
        assert code == 0, err
        scores.append(json.loads(out))
    for key in ("iou", "dice", "mean_iou", "image_iou", "image_dice"):
        assert scores[0][key] == pytest.approx(scores[1][key], abs=1e-3)


def test_watch_prints_each_image_and_ctrl_c_ends_it(run, tmp_path, leanconv, monkeypatch):
    from leanconv.train.inference import watch

    folder = tmp_path / "camera"
    folder.mkdir()
    (tmp_path / "w0.png").rename(folder / "w0.png")

    def stop(seconds):
        if (tmp_path / "o" / "w0_mask.png").is_file():
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", stop)
    code, out, err = leanconv("predict", run.path, "--watch", folder, "--out", tmp_path / "o")
    assert code == 0, err
    assert out.startswith(f"{folder / 'w0.png'}  40x40  ")
    assert out.count("\n") == 1
    assert "1 of 1 images written" in err
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: folder.exists() and (folder / "w0.png").unlink())
    monkeypatch.setattr(watch.Arrivals, "_images", lambda self: (_ for _ in ()).throw(BadInput("gone")))
    code, _, err = leanconv("predict", run.path, "--watch", folder, "--out", tmp_path / "o")
    assert code == 1
    assert err == "error: gone\n"
    code, _, err = leanconv("predict", run.path, tmp_path / "w1.png", "--watch", folder)
    assert code == 1
    assert "--watch" in err


def test_an_engine_that_is_not_installed_is_one_line(run, tmp_path, leanconv, monkeypatch):
    monkeypatch.setattr("leanconv.engine.candidate.installed", lambda name: False)
    code, _, err = leanconv("predict", run.path, tmp_path / "w0.png", "--out", tmp_path / "o", "--engine", "openvino")
    assert code == 1
    assert err.startswith("error: --engine openvino: openvino not installed: pip install 'leanconv[export]'")
    assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()
