"""`leanconv recipes`, and recipes by name in `leanconv train`."""

import json
import subprocess
import sys

import pytest

from leanconv import recipes
from leanconv.train.recipe import Recipe


def test_the_list_has_every_recipe_with_its_command(leanconv):
    code, out, err = leanconv("recipes")
    assert (code, err) == (0, "")
    for name in recipes.names():
        assert f"\n{name} (" in f"\n{out}"
        assert recipes.get(name).commands[0] in out
    assert out.index("\nwafer (") < out.index("drafts") < out.index("\nodconv (")  # measured ones first


def test_the_list_for_machines(leanconv):
    rows = {row["name"]: row for row in json.loads(leanconv("recipes", "--json")[1])["recipes"]}
    assert list(rows) == recipes.names()
    assert rows["wafer"]["task"] == "segment"
    assert rows["wafer"]["command"].startswith("leanconv train wafer data=DIR")
    assert rows["unet_resnet18"]["swap"] == "depthwise_separable"
    assert (rows["odconv"]["draft"], rows["wafer"]["draft"]) == (True, False)


def test_one_is_printed_to_be_copied(leanconv, tmp_path):
    code, out, _ = leanconv("recipes", "wafer")
    assert code == 0
    mine = tmp_path / "mine.toml"
    mine.write_text(out)
    assert Recipe.read(mine) == Recipe.read("wafer")
    assert json.loads(leanconv("recipes", "wafer", "--json")[1])["text"] == out


@pytest.mark.parametrize("command", ["recipes", "train"])
def test_a_near_miss_is_one_line_with_the_names(leanconv, command):
    code, out, err = leanconv(command, "wafr")
    assert (code, out) == (2, "")
    assert "did you mean 'wafer'" in err
    assert "demo" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("words", [["wafr"], ["wafer", "imgsz=3"], ["wafer", "epochs=many"], ["wafer", "keep=worst"]])
def test_a_typo_is_answered_before_torch_is_imported(words, tmp_path):
    code = """
import sys
from leanconv.cli.main import main
try:
    main()
except SystemExit as leaving:
    assert leaving.code in (1, 2)
assert not {"torch", "numpy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, "train", *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: ")


SMALL = ["size=24", "batch=5", "epochs=0", "steps=4", "device=cpu", "threads=1", "--quiet"]


def test_a_recipe_by_name_from_any_folder(leanconv, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wafer").mkdir()  # a folder of images that bears the recipe's name
    code, out, err = leanconv("train", "wafer", f"data={tiny_data}", "model=leanconv:unet?base=4&levels=2", *SMALL)
    assert (code, err) == (0, "")
    assert "leanconv report runs/wafer" in out
    assert Recipe.read("runs/wafer/recipe.toml").lr == Recipe.read("wafer").lr


LEAN = "model=leanconv:unet?base=4&levels=2&conv=depthwise_separable"


def test_also_dense_trains_the_twin_and_says_how_to_compare(leanconv, tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = leanconv("train", "wafer", f"data={tiny_data}", LEAN, *SMALL, "--also-dense", "out=runs/my lean")
    assert (code, err) == (0, "")
    assert "leanconv report 'runs/my lean-dense' 'runs/my lean'" in out
    assert out.index("runs/my lean\n") < out.index("runs/my lean-dense\n")
    code, out, _ = leanconv("train", "runs/my lean", "--resume", "--also-dense", "--quiet", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["run"], found["dense"]["run"]) == ("runs/my lean", "runs/my lean-dense")
    assert found["params"] < found["dense"]["params"]
    assert found["dense"]["test"]["images"] == found["test"]["images"]


def test_an_undivided_folder_is_noted_once(leanconv, tmp_path):
    from PIL import Image

    for kind in ("images", "masks"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for index in range(24):
            Image.new("L", (24, 24), 255 * (index % 2)).save(tmp_path / "photos" / kind / f"{index}.png")
    words = [word for word in SMALL if word != "--quiet"]
    code, _, err = leanconv(
        "train", "wafer", f"data={tmp_path / 'photos'}", LEAN, *words, f"out={tmp_path / 'run'}", "--also-dense"
    )
    assert code == 0, err
    assert err.count("is not divided") == 1  # for three splits and two runs
