"""`leanconv eval` and `predict` on defects: the options, the tables, one line for what goes wrong."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from leanconv.runs import RunFolder


@pytest.fixture
def run(tiny_data, tmp_path):
    """A network that calls bright pixels a defect; what was chosen for it, and the rule of its recipe."""
    import torch

    folder = RunFolder(tmp_path / "run")
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Bright(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.bias = torch.nn.Parameter(torch.zeros(1))\n\n"
        "    def forward(self, x):\n        return x.mean(1, keepdim=True) * 8 + self.bias\n"
    )
    folder.write_model(f"{tmp_path / 'net.py'}:Bright", task="segment", classes=("copper", "flake"))
    net = folder.build_model(trust_code=True)
    with torch.no_grad():
        net.bias.fill_(1.5)
    folder.save_model(net)
    folder.metrics.write_text('{"threshold": 0.5, "min_area": 4, "merge": 0}')
    folder.recipe.write_text(f"data = '{tiny_data}'\nsteps = 1\nmax_area = 150\n")
    return folder.path


def test_eval_prints_defects_and_verdicts(run, leanconv):
    code, out, _ = leanconv("eval", run, "--trust-code")
    assert code == 0
    assert "Defects from 4 px, merge 0 px; matched: IoU of at least 0.1." in out
    (row,) = (line.split() for line in out.splitlines() if line.startswith("flake") and len(line.split()) == 6)
    assert row[1:2] == ["5"]
    code, out, _ = leanconv("eval", run, "--trust-code", "--json", "--min-area", "0", "--merge", "2", "--per-image")
    told = json.loads(out)
    assert (told["min_area"], told["merge"], told["thresholds"]) == (0, 2, {"flake": 0.5})
    assert told["objects"]["true"] == 5 == sum(picture["true"] for picture in told["per_image"])
    assert told["objects"]["reported"] >= int(row[2])
    assert sum(told["verdicts"][key] for key in ("found", "missed", "false_alarms", "passed")) == 5
    assert told["verdicts"]["found"] + told["verdicts"]["missed"] == 5, "168 px each"


def test_predict_lists_them(run, tiny_data, tmp_path, leanconv):
    image = tiny_data / "test" / "images" / "0.png"
    words = ["predict", run, image, "--trust-code", "--out", tmp_path / "out"]
    code, out, err = leanconv(*words)
    assert (code, err) == (0, "")
    assert "1 images written to" in out
    assert "0 pass, 1 fail" in out
    with (tmp_path / "out" / "defects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"flake"}
    assert min(int(row["area_px"]) for row in rows) >= 4
    code, out, _ = leanconv(*words, "--min-area", "100000", "--json")
    (picture,) = json.loads(out)["images"]
    assert (code, picture["defects"], picture["verdict"], picture["why"]) == (0, [], "pass", "")
    for more, says in [
        (["--min-area", "-1"], "--min-area"),
        (["--merge", "x"], "--merge"),
        (["--threshold", "bump=0.3"], "'bump' is no class: one of flake"),
    ]:
        code, _, err = leanconv(*words, *more)
        assert code
        assert says in err
        assert "Traceback" not in err


def test_a_folder_where_the_table_goes(run, tiny_data, tmp_path, leanconv):
    (tmp_path / "out" / "verdicts.csv").mkdir(parents=True)
    image = tiny_data / "test" / "images" / "0.png"
    code, out, err = leanconv("predict", run, image, "--trust-code", "--out", tmp_path / "out", "--overwrite")
    assert (code, out) == (1, "")
    assert err.splitlines() == [err.strip()]
    assert "verdicts.csv is a folder, and the table of that name goes there: give another --out" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["verdicts.csv"]


def test_a_rule_of_a_class_that_is_not_there(run, tiny_data, tmp_path, leanconv):
    recipe = RunFolder(run).recipe
    recipe.write_text(recipe.read_text() + 'fail_classes = ["bump"]\n')
    image = tiny_data / "test" / "images" / "0.png"
    code, _, err = leanconv("predict", run, image, "--trust-code", "--out", tmp_path / "out")
    assert code == 1
    assert "fail_classes has 'bump': one of flake" in err


def test_classes_on_the_command_line(tmp_path, leanconv):
    """What a user types who has class indices, and nothing of the network's outputs."""
    random = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for index in range(2):
            mask = random.integers(0, 4, (16, 16), dtype=np.uint8)
            Image.fromarray(np.stack([mask * 60] * 3, 2)).save(tmp_path / f"data/{split}/images/{index}.png")
            Image.fromarray(mask).save(tmp_path / f"data/{split}/masks/{index}.png")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"data = '{tmp_path / 'data'}'\nout = '{tmp_path / 'r'}'\nmodel = 'leanconv:unet?base=2&levels=1'\n"
        "steps = 1\nsize = 16\nbatch = 2\ndevice = 'cpu'\n"
    )
    code, out, err = leanconv("train", recipe, "--quiet", "classes=4")
    assert (code, err) == (0, "")
    assert "class3" in out
    (tmp_path / "data" / "classes.txt").write_text("copper\nscratch\npit\nstain\n")
    code, out, err = leanconv("train", recipe, "--quiet", f"out={tmp_path / 'named'}")
    assert (code, err) == (0, "")
    assert RunFolder(tmp_path / "named").read_model().classes == ("copper", "scratch", "pit", "stain")
    code, _, err = leanconv("train", recipe, "--quiet", f"out={tmp_path / 'x'}", "out_channels=4")
    assert code == 2
    assert "the outputs follow the classes of the data" in err
