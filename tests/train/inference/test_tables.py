"""defects.csv and verdicts.csv: every image once, whatever its name; nobody else's file is lost."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from leanconv.errors import BadInput
from leanconv.train.inference.defects import Defect, Prediction
from leanconv.train.inference.predict import predict
from leanconv.train.inference.tables import DEFECTS, VERDICTS, check_tables, update_tables


def found(name, *areas, why="", kind="scratch"):
    defects = tuple(Defect((1, 2, 3, 4), area, 0.5, 1, kind) for area in areas)
    return Prediction(name, 9, 9, {}, defects, why)


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_other_images_stay(tmp_path):
    update_tables(tmp_path, [found("a.png", 7, 3, why="2 defects"), found("b.png")])
    assert rows(tmp_path / DEFECTS)[1] == {
        "file": "a.png", "class": "scratch", "x0": "1", "y0": "2", "x1": "3", "y1": "4", "area_px": "3",
        "score": "0.5000",
    }  # fmt: skip
    assert [row["verdict"] for row in rows(tmp_path / VERDICTS)] == ["fail", "pass"]
    update_tables(tmp_path, [found("./a.png", 5, why="1 defect"), found("c.png", 1)])
    assert [(row["file"], row["area_px"]) for row in rows(tmp_path / DEFECTS)] == [("./a.png", "5"), ("c.png", "1")]
    assert [row["file"] for row in rows(tmp_path / VERDICTS)] == ["b.png", "./a.png", "c.png"]


@pytest.mark.parametrize("name", ['with "quotes", and commas', "line\nend", "byte\udcff", "=1+1", "\u202eturned", "é"])
def test_any_name(tmp_path, name):
    for _ in range(2):
        update_tables(tmp_path, [found(name, 3, why="pit: 1; ,", kind=name)])
    assert len(rows(tmp_path / DEFECTS)) == len(rows(tmp_path / VERDICTS)) == 1
    (tmp_path / DEFECTS).read_text(encoding="utf-8")
    row = rows(tmp_path / DEFECTS)[0]
    assert row["file"].removeprefix("./").startswith(name[:4].replace("\n", "\\")[:4]) or "\\" in row["file"]
    assert "\n" not in row["file"] + row["class"]


@pytest.mark.parametrize("name", ["=1+1.png", "+1.png", "-1.png", "@a.png"])
def test_a_name_is_no_formula_and_still_the_same_file(tmp_path, name):
    for _ in range(2):
        update_tables(tmp_path, [found(name, 3)])
    for table in (DEFECTS, VERDICTS):
        assert [row["file"] for row in rows(tmp_path / table)] == [f"./{name}"]


@pytest.mark.parametrize("name", [DEFECTS, VERDICTS])
@pytest.mark.parametrize("content", [b"mine", b"", b"file,class\n1,2\n", b"\xff\xfe", b'"'])
def test_somebodys_table_stays(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name} was not made by predict.*--overwrite"):
        check_tables(tmp_path, False)
    with pytest.raises(BadInput, match="was not made by predict"):
        update_tables(tmp_path, [found("a.png", 3)])
    assert (tmp_path / name).read_bytes() == content
    update_tables(tmp_path, [found("a.png", 3)], overwrite=True)
    assert len(rows(tmp_path / name)) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_its_place(tmp_path, overwrite):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "out" / DEFECTS).mkdir(parents=True)
    with pytest.raises(BadInput, match=r"defects\.csv is a folder.*give another --out"):
        predict(nn.Conv2d(3, 1, 1), [tmp_path / "a.png"], tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [DEFECTS], "found before the first prediction"


def test_what_was_predicted_before_ctrl_c_is_listed(tmp_path):
    for name in ("a", "b"):
        Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / f"{name}.png")

    class Stops(nn.Module):
        calls = 0

        def forward(self, x):
            Stops.calls += 1
            if Stops.calls > 1:
                raise KeyboardInterrupt
            return x[:, :1]

    with pytest.raises(KeyboardInterrupt):
        predict(Stops(), [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out")
    assert [row["file"] for row in rows(tmp_path / "out" / VERDICTS)] == [str(tmp_path / "a.png")]
    assert json.loads((tmp_path / "out" / "a.json").read_text())["verdict"] == "fail"


def test_lists_and_options_of_predict_agree(tmp_path):
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[4:8, 4:20], picture[4:8, 23:30], picture[20, 5] = 255, 255, 255
    Image.fromarray(picture).save(tmp_path / "a.png")

    class Red(nn.Module):
        def forward(self, x):
            return x[:, :1]

    def predicted(**options):
        result = predict(Red(), [tmp_path / "a.png"], tmp_path / "out", **options)
        listed = json.loads((tmp_path / "out" / "a.json").read_text())
        assert listed == result.done[0].to_dict()
        told = rows(tmp_path / "out" / DEFECTS)
        assert [int(row["area_px"]) for row in told] == [d["area_px"] for d in listed["defects"]]
        assert int((np.asarray(Image.open(tmp_path / "out" / "a_mask.png")) > 0).sum()) == 64 + 28 + 1
        return [int(row["area_px"]) for row in told]

    with torch.no_grad():
        assert predicted() == [64, 28, 1]
        assert predicted(min_area=2) == [64, 28]
        assert predicted(merge=4) == [92, 1]
        assert predicted(merge=4, min_area=5, threshold="defect=0.6") == [92]
    with pytest.raises(BadInput, match="merge=-1"):
        predicted(merge=-1)
