"""The benchmark from photographs to masks: its comparison of masks, and a whole round of a tiny set."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import photographs


def masks(folder, **values):
    folder.mkdir()
    for name, value in values.items():
        Image.fromarray(np.asarray(value, np.uint8)).save(folder / f"{name}_mask.png")
    return folder


def test_pixels_that_differ_are_counted(tmp_path):
    ours = masks(tmp_path / "ours", a=[[0, 255], [0, 0]], b=[[1, 2, 3]])
    same = masks(tmp_path / "same", a=[[0, 255], [0, 0]], b=[[1, 2, 3]])
    other = masks(tmp_path / "other", a=[[0, 255], [255, 0]], b=[[1, 3, 2]])
    assert photographs.differing(ours, same) == {"pixels": 7, "pixels_differ": 0}
    assert photographs.differing(ours, other) == {"pixels": 7, "pixels_differ": 3}


def test_masks_that_are_missing_or_of_another_size_are_no_agreement(tmp_path):
    ours = masks(tmp_path / "ours", a=[[0, 255]])
    for number, others in enumerate(({}, {"b": [[0, 255]]}, {"a": [[0]]})):
        with pytest.raises(RuntimeError, match=r"others|sizes"):
            photographs.differing(ours, masks(tmp_path / str(number), **others))


def test_a_command_that_fails_says_which(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)exit.*no such set"):
        photographs.timed([sys.executable, "-c", "import sys; sys.exit('no such set')"], tmp_path)


@pytest.mark.slow
def test_the_whole_round_and_its_resumption(tiny_data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    settings = ["model=leanconv:unet?base=2&levels=1", "size=16"]
    monkeypatch.setattr(photographs, "SETS", {"tiny": ("wafer", tiny_data.name, settings)})
    out = tmp_path / "photographs.json"
    words = ["photographs", str(tiny_data.parent), "--steps", "2", "--sets", "tiny", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    photographs.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert row["pixels_differ"] == 0 < row["pixels"]
    assert set(row["times"]) == set(photographs.STEPS)
    assert all(each["s"] > 0 for each in row["times"].values())
    monkeypatch.setattr(sys, "argv", [*words, "--resume"])
    monkeypatch.setattr(photographs, "measured", lambda *_: pytest.fail("measured again"))
    photographs.main()
    assert "tiny" in capsys.readouterr().out
