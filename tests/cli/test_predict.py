"""`leanconv predict`: the run's own threshold, its files, one line for a bad image, exit codes."""

import json

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["norun", "x.png"], 1, "run folder does not exist"),
        (["{run}"], 2, "Missing argument"),
        (["{run}", "x.png", "--tile", "0"], 2, "--tile"),
        (["{run}", "x.png", "--threshold", "2"], 1, "threshold=2: a number between 0 and 1"),
    ],
)
def test_usage(run, leanconv, words, code, says):
    found, _, err = leanconv("predict", *[word.format(run=run.path) for word in words])
    assert found == code
    assert says in err
    assert "Traceback" not in err
