"""No option is ignored in silence: it is honoured, or refused in one line before the work begins."""

import pytest

from leanconv.errors import BadInput
from leanconv.models import build
from leanconv.runs import RunFolder
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.setup import check_used

UNET = ["leanconv:unet", "base=2", "levels=1", "--input", "1,3,8,8"]


@pytest.fixture
def runs(tiny_data, coloured, tmp_path):
    """Of each task one: two classes of pixels, three of them, classes of images."""
    made = {}
    for name, data, network, options, task in (
        ("TWO", tiny_data, "unet", {"base": 2, "levels": 1}, "segment"),
        ("CE", tiny_data, "unet", {"base": 2, "levels": 1, "out_channels": 2}, "segment"),
        ("THREE", tiny_data, "unet", {"base": 2, "levels": 1, "out_channels": 3}, "segment"),
        ("COLOURS", coloured, "vgg16_cifar", {"num_classes": 3, "width": 0.0625}, "classify"),
    ):
        folder = made[name] = RunFolder(tmp_path / name)
        words = "&".join(f"{key}={value}" for key, value in options.items())
        classes = ("blue", "green", "red") if task == "classify" else ("background", "a", "b")[: 2 + (name == "THREE")]
        folder.write_model(f"leanconv:{network}?{words}", task=task, classes=classes)
        folder.save_model(build(network, **options))
        data = f"{data}?classes=3" if name == "THREE" else data
        folder.recipe.write_text(f"data = '{data}'\nsteps = 1\nsize = 32\n")
    return made


USELESS = [
    (["eval", "THREE", "--threshold", "scratch=0.9"], "'scratch' is no class: one of a, b"),
    (["predict", "CE", "IMAGE", "--threshold", "a=high", "--out", "o"], "threshold of a=high: a number between"),
    (["eval", "COLOURS", "--threshold", "0.9"], "--threshold 0.9 is for masks"),
    (["eval", "TWO", "--per-image"], "--per-image needs --json"),
    (["eval", "TWO", "--per-image", "--out", "r.txt"], "--per-image needs --json"),
    (["eval", "COLOURS", "--min-area", "9"], "--min-area 9 is for masks"),
    *((["predict", "COLOURS", "IMAGE", "--out", "o", f"--{name}", "8"], f"--{name} 8 is for masks")
      for name in ("side", "tile", "overlap", "batch", "min-area", "merge")),
    (["export", "TWO", "m.pt2", "--outputs-only", "--data", "x"], "--data has no effect with --outputs-only"),
    (["export", "TWO", "m.pt2", "--outputs-only", "--split", "test"], "--split has no effect with --outputs-only"),
    (["export", *UNET, "m.pt2", "--split", "test"], "--split needs --data, which is missing"),
    (["report", "TWO", "--budget", "0", "--optimize", "5", "--out", "r.html"], "--optimize has no effect"),
    (["report", "COLOURS", "--cases", "3", "--out", "r.html"], "--cases 3: pictures show masks"),
    (["profile", *UNET, "--array", "8x8", "--budget", "3"], "--budget applies to the timed profile only"),
    (["profile", *UNET, "--conventions", "--convention", "thop"], "--convention applies to the timed profile only"),
    (["profile", *UNET, "--lanes", "8x18", "--channels-last"], "--channels-last applies to the timed profile only"),
    (["profile", *UNET, "--intra", "3"], "--intra applies to --lanes only"),
    (["reproduce", "splconv/table1", "--clock", "cpu"], "--clock applies to --time only"),
    (["reproduce", "splconv/table1", "--counts", "--budget", "3"], "--budget applies to --time only"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "says"), USELESS, ids=str)
def test_what_is_of_no_use_is_refused(leanconv, runs, tiny_data, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    image = next((tiny_data / "test" / "images").iterdir())
    places = {name: run.path for name, run in runs.items()} | {"IMAGE": image}
    code, out, err = leanconv(*(places.get(word, word) for word in words))
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CE", "COLOURS", "THREE", "TWO"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("side=24&side=12", "side is given twice"),
        ("val=0.3", "val=0.3 holds out a part of train, and it has a val split"),
    ],
)
def test_an_option_of_the_data(leanconv, runs, coloured, tiny_data, words, says):
    run, data = ("TWO", tiny_data) if "side" in words else ("COLOURS", coloured)
    code, _, err = leanconv("eval", runs[run].path, "--data", f"{data}?{words}")
    assert (code, says in err) == (1, True), err


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"drop": 0.5}, r"drop=0\.5 is of no use with schedule=cosine: leave it out, or say drop=0\.1"),
        ({"drop_epochs": 3, "schedule": "poly"}, "drop_epochs=3 is of no use with schedule=poly"),
        ({"drop_epochs": 3, "schedule": "step", "drop_at": "1"}, "drop_epochs=3 is of no use with drop_at"),
        ({"momentum": 0.5}, r"momentum=0\.5 is of no use with optimizer=adamw"),
        ({"augment": False, "zoom": 1.5}, r"zoom=1\.5 is of no use with augment=false"),
        ({"augment": False, "defect_crop": 0.5}, r"defect_crop=0\.5 is of no use with augment=false"),
    ],
)
def test_a_setting_that_another_makes_useless(tmp_path, settings, says):
    with pytest.raises(BadInput, match=says):
        fit(Recipe(steps=1, out=str(tmp_path / "run"), device="cpu", **settings), progress=False)
    assert not (tmp_path / "run").exists()


def test_settings_that_are_used_or_were_not_asked_for(tmp_path):
    for settings in (
        {},
        {"schedule": "step", "drop": 0.5, "drop_epochs": 3},
        {"schedule": "step", "drop_at": "3"},
        {"augment": False},
        {"optimizer": "sgd", "momentum": 0.0},
        {"augment": False, "light": 0.0},
        {"zoom": 1.5, "defect_crop": 0.5},
    ):
        check_used(Recipe(steps=1, **settings))
