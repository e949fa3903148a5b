"""`leanconv search`: a budget, a data folder, a plan that the other commands take."""

import json

import pytest

from leanconv.cli.search import Init
from leanconv.convert import Plan
from leanconv.planner.trial_swaps import inits

pytest.importorskip("scipy", reason="needs the search extra")

UNET = ["leanconv:unet", "base=4", "levels=2"]
QUICK = ["--to", "hetconv(part=4)", "--to", "depthwise_separable", "--init", "project", "--images", "4"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    from leanconv.planner import kept

    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "cache")


def test_the_words_of_init_are_those_of_apply():
    assert {each.value for each in Init} - {"auto"} >= set(inits())


def test_help_says_how_long(leanconv):
    code, out, _ = leanconv("search", "--help")
    assert code == 0
    assert "How long" in out
    assert "if this version" not in out


def test_masks(leanconv, tiny_data, tmp_path):
    plan, front = tmp_path / "plan.json", tmp_path / "front.html"
    words = [*UNET, "--data", tiny_data, "--macs", "60%", *QUICK, "--out", plan, "--pareto", front]
    code, out, err = leanconv("search", *words)
    assert code == 0, err
    assert "KL of the masks" in out
    assert "on 4 images" in out
    assert "chosen" in out
    found = Plan.load(plan)
    assert found.swapped
    assert found.after.macs < found.before.macs
    page = front.read_text()
    assert "<svg" in page
    assert "predicted front" in page
    assert "chosen" in page
    code, out, err = leanconv("convert", *UNET, "--plan", plan, "--out", tmp_path / "run", "--input", "1,3,32,32")
    assert code == 0, err
    code, out, err = leanconv("search", *words)  # our own files are replaced
    assert code == 0, err


def test_classes_as_json(leanconv, coloured):
    words = ["leanconv:resnet20_cifar", "num_classes=3", "--data", coloured, "--params", "70%", *QUICK]
    code, out, err = leanconv("search", *words, "--input", "1,3,16,16", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["format"] == "leanconv plan 1"
    assert found["search"]["how_harm"].startswith("KL of the classes")
    assert found["search"]["dense"]["params"] > 2e5
    assert found["search"]["front"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a budget"),
        (["--faster", "2x", "--latency", "50%"], "limit the same"),
        (["--faster", "half"], "--faster 2x"),
        (["--macs", "50%", "--pareto", "front.pdf"], "must end in one of .html, .png, .svg"),
        (["--macs", "50%", "--input", "big"], "1,3,512,512"),
        (["--macs", "1%"], "the nearest swaps"),
        (["--macs", "50%", "--split", "nowhere"], "nowhere"),
    ],
)
def test_bad_input(leanconv, tiny_data, words, message):
    code, _out, err = leanconv("search", *UNET, "--data", tiny_data, *QUICK, *words)
    assert code in (1, 2)
    assert message in err
    assert "Traceback" not in err


def test_a_foreign_file_stays(leanconv, tiny_data, tmp_path):
    foreign = tmp_path / "front.png"
    foreign.write_bytes(b"mine")
    code, _, err = leanconv("search", *UNET, "--data", tiny_data, "--macs", "60%", *QUICK, "--pareto", foreign)
    assert code == 1
    assert "leanconv did not write it" in err
    assert foreign.read_bytes() == b"mine"


def test_a_foreign_state_stays(leanconv, tiny_data, tmp_path):
    foreign = tmp_path / "notes.txt"
    foreign.write_bytes(b"mine")
    code, _, err = leanconv("search", *UNET, "--data", tiny_data, "--macs", "60%", *QUICK, "--state", foreign)
    assert code == 1
    assert "it stays as it is: name a new file" in err
    assert foreign.read_bytes() == b"mine"


def test_no_data_folder(leanconv, tmp_path):
    code, _, err = leanconv("search", *UNET, "--data", tmp_path / "none", "--macs", "60%")
    assert code == 1
    assert "none" in err
