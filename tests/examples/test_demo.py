"""The demo, shrunk: every part runs, what it promises lies there, and an earlier demo is never lost."""

import pytest

pytest.importorskip("jinja2", reason="the demo's report needs jinja2")
pytest.importorskip("onnxruntime", reason="the demo exports to ONNX")
pytest.importorskip("openvino", reason="the demo exports to OpenVINO")

from examples import demo as example
from leanconv.errors import Interrupted
from leanconv.train.recipe import Recipe


@pytest.fixture(scope="module")
def tiny():
    words = ["steps=4", "size=32", "batch=4", "data=synthetic:wafer?size=32&count=10", "threads=1"]
    return Recipe.read(example.RECIPE, [*words, "model=leanconv:unet?base=4&levels=2"])


@pytest.mark.slow
def test_it_leaves_what_it_promises(tiny, tmp_path, capsys):
    page = example.demo(tmp_path / "demo", tiny, budget_s=0.1)
    shown = capsys.readouterr().out
    assert page.read_text().count('class="case"') >= 1
    for file in ("splconv/export/model.onnx", "splconv/export/model.xml", "predictions/picture_overlay.png"):
        assert (tmp_path / "demo" / file).stat().st_size > 0
    for words in ("Dice per image", "Frames/s, optimised", "channels_last", "relative error", "1 of 1 images written"):
        assert words in shown
    for command in ("train", "report", "predict", "export", "plan"):
        assert f"leanconv {command} " in example.what_next(page)


def test_the_recipe_is_the_issues():
    recipe = Recipe.read(example.RECIPE)
    assert (recipe.size, recipe.steps) == (96, 300)
    assert recipe.data.startswith("synthetic:wafer")


def test_an_earlier_demo_is_kept(tmp_path):
    out = tmp_path / "demo"
    assert example.set_aside(out) is None
    for text in ("first", "second"):
        out.mkdir()
        (out / "note").write_text(text)
        example.set_aside(out)
    assert [(tmp_path / name / "note").read_text() for name in ("demo-1", "demo-2")] == ["first", "second"]
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(KeyboardInterrupt(), 130, "make demo"), (Interrupted("go on with: leanconv train X --resume"), 1, "--resume")],
)
def test_a_stop_is_one_line_and_a_status(monkeypatch, capsys, error, status, words):
    def stopped():
        raise error

    monkeypatch.setattr(example, "demo", stopped)
    assert example.main() == status
    assert words in capsys.readouterr().err
