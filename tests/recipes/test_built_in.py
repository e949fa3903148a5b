"""The built-in recipes: part of the package, found by name, each one readable, buildable and honest."""

import os
import shlex
import subprocess
import sys
import zipfile

import pytest
import torch

from leanconv import recipes
from leanconv.errors import BadInput, UnknownName
from leanconv.runs import load
from leanconv.train.optimizer import rate_at
from leanconv.train.recipe import Recipe
from leanconv.train.swapped import swap_


def test_there_are_recipes():
    ours = {"demo", "wafer", "magnetic_tile", "unet_resnet18", "splconv_paper", "cifar10_short", "lhconv"}
    assert set(recipes.names()) >= ours | set(PRINTED)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_says_what_it_is_for(name):
    """Each opens with its purpose and its command, and says what to expect or that it is a draft."""
    found = recipes.get(name)
    head = found.text.split("\nmodel =")[0]
    assert found.purpose.endswith(".")
    for command in found.commands:
        assert shlex.split(command)[:3] == ["leanconv", "train", name]
    assert found.commands
    assert found.draft or "Dice" in head or "benchmarks/results/" in head
    assert found.values.get("task") in ((None,) if "teacher" in found.values else ("segment", "classify"))


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_reads_and_its_model_builds(name):
    if "teacher" in recipes.get(name).values:  # its model is that of a run of the user's
        with pytest.raises(BadInput, match="teacher=runs/dense: the run folder does not exist"):
            Recipe.read(name)
        return
    recipe = Recipe.read(name)
    epochs = max(1, recipe.epochs)
    assert not recipe.pretrained  # nothing is downloaded unless the user says so
    if recipe.model.startswith("smp:"):
        pytest.importorskip("segmentation_models_pytorch", reason=f"{name} is a model of smp")
    if recipe.task == "segment":
        model = load(recipe.model).eval()
        if recipe.swap:
            assert swap_(model, recipe).swapped
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
        return
    classes = {"cifar100": 100, "imagenet": 1000, "odconv": 1000, "tiny_imagenet": 200}
    outputs = next((n for word, n in reversed(classes.items()) if name.endswith(word)), 10)
    with torch.device("meta"):  # an ImageNet VGG is half a gigabyte
        logits = load(recipe.model).eval()(torch.zeros(2, 3, recipe.size, recipe.size))
    assert logits.shape == (2, outputs)
    assert rate_at(epochs - 1, epochs, recipe) < recipe.lr


def test_falls_at_epochs_that_are_named():
    recipe = Recipe.read("hetconv_resnet56_cifar")
    rates = [rate_at(epoch * 390, 164 * 390, recipe, 390) for epoch in (0, 81, 82, 122, 123, 163)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    with pytest.raises(BadInput, match="whole epochs"):
        Recipe(epochs=1, drop_at="82;123")


PRINTED = {
    "hetconv_vgg16_cifar": (0.1, 50, 128, 5e-4),
    "hetconv_imagenet": (0.1, 30, 256, 1e-4),
    "odconv": (0.1, 30, 256, 1e-4),
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_papers_settings(name):
    recipe = Recipe.read(name)
    assert (recipe.lr, recipe.drop_epochs, recipe.batch, recipe.weight_decay) == PRINTED[name]
    per_epoch = 390
    rates = [rate_at(epoch * per_epoch, recipe.epochs * per_epoch, recipe, per_epoch) for epoch in range(recipe.epochs)]
    assert rates[: recipe.drop_epochs] == [0.1] * recipe.drop_epochs
    assert rates[recipe.drop_epochs] == pytest.approx(0.01)
    assert rates[2 * recipe.drop_epochs] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        ("wafr", UnknownName, "did you mean 'wafer'.*known: cifar10_short, demo.*`leanconv recipes`"),
        ("magnetic-tile", UnknownName, "did you mean 'magnetic_tile'"),
        ("zzzzzz", UnknownName, "no built-in recipe; known: cifar10_short"),
        ("x" * 5000, UnknownName, "is no file, no run folder and no built-in recipe"),
        (os.fsdecode(b"caf\xe9"), UnknownName, "caf.udce9"),
        ("recipes/wafer.toml", BadInput, "No such file.*called by its name: leanconv train wafer"),
        ("wafr.toml", BadInput, "leanconv train wafer"),
        ("nowhere/mine.toml", BadInput, "No such file or directory$"),
        ("..", BadInput, "no file but a folder"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode() if isinstance(value, str) else "",
)
def test_a_name_that_is_none(word, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as found:
        recipes.read(word)
    assert "\n" not in str(found.value)


def test_a_file_wins_over_a_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wafer").mkdir()
    assert recipes.read("wafer") == recipes.get("wafer").values
    (tmp_path / "demo").write_text("epochs = 7\n")
    assert recipes.read("demo") == {"epochs": 7}
    with pytest.raises(UnknownName, match="no recipe is called 'nothing'"):
        recipes.get("nothing")


@pytest.mark.slow
def test_the_wheel_holds_them(tmp_path):
    """Built and read as an installer does; without build tools of the network."""
    pytest.importorskip("setuptools", reason="the wheel is built without fetching setuptools")
    from docs.generate import ROOT

    source = tmp_path / "source"
    source.mkdir()
    for each in ("leanconv", "pyproject.toml", "README.md", "LICENSE"):
        (source / each).symlink_to(ROOT.parent / each)
    words = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if "No module named pip" in done.stderr:
        pytest.skip("pip is not installed here")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = zipfile.ZipFile(wheel).namelist()
    assert {f"leanconv/recipes/{name}.toml" for name in recipes.names()} <= set(held)
