"""Recipes: typed, flat, and an unknown key names its neighbour."""

import dataclasses
from pathlib import Path

import pytest
import torch

from leanconv.errors import BadInput, UnknownName
from leanconv.runs import load
from leanconv.train.recipe import Recipe


def written(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


def test_file_and_words(tmp_path):
    path = written(tmp_path, 'model = "leanconv:unet"\nepochs = 5\nlr = 1\n')
    words = ["model=leanconv:unet?base=8&conv=splconv(alpha=0.5)", "batch=4", "compile=true", "amp=bf16", "lr=3e-4"]
    recipe = Recipe.read(path, words)
    assert recipe.model == "leanconv:unet?base=8&conv=splconv(alpha=0.5)"
    assert (recipe.batch, recipe.compile, recipe.amp, recipe.lr, recipe.epochs) == (4, True, "bf16", 3e-4, 5)
    assert type(Recipe.read(path).lr) is float


def test_a_word_for_epochs_replaces_the_files_steps(tmp_path):
    path = written(tmp_path, "steps = 300\n")
    assert (Recipe.read(path, ["epochs=2"]).epochs, Recipe.read(path, ["epochs=2"]).steps) == (2, 0)
    assert Recipe.read(path, ["steps=7"]).steps == 7
    with pytest.raises(BadInput, match="one of the two"):
        Recipe.read(path, ["epochs=2", "steps=2"])
    with pytest.raises(BadInput, match="one of the two"):
        Recipe.read(written(tmp_path, ""))


def test_round_trip_of_every_key(tmp_path):
    odd = 'a"b\\c?conv=splconv(alpha=0.5)\u00e9'
    recipe = Recipe(model=odd, epochs=3, compile=True, lr=1e-7, momentum=0.1 + 0.2)
    assert Recipe.read(recipe.write(tmp_path / "r.toml")) == recipe


@pytest.mark.parametrize(
    ("text", "words", "error", "message"),
    [
        ("epochz = 3", [], UnknownName, "did you mean 'epochs'.*known: model, data"),
        ("epochs = 3", ["bacth=3"], UnknownName, "did you mean 'batch'"),
        ('epochs = "3"', [], BadInput, "epochs takes a whole number"),
        ("epochs = 3.5", [], BadInput, "epochs takes a whole number"),
        ("epochs = true", [], BadInput, "epochs takes a whole number"),
        ("epochs = 3\ncompile = 1", [], BadInput, "compile takes true or false"),
        ("epochs = 3", ["lr=fast"], BadInput, "lr takes a number"),
        ("epochs = 3", ["lr"], BadInput, "key=value"),
        ("epochs = 3", ["lr=nan"], BadInput, "lr=nan"),
        ("epochs = 3", ["batch=0"], BadInput, "at least 1"),
        ("epochs = 3", ["optimizer=adam"], BadInput, "adamw, sgd"),
        ("epochs = 3\n[train]\nlr = 1", [], UnknownName, "unknown recipe key 'train'"),
        ("epochs = = 3", [], BadInput, "is not TOML"),
    ],
)
def test_refusals(tmp_path, text, words, error, message):
    with pytest.raises(error, match=message):
        Recipe.read(written(tmp_path, text), words)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"none\.toml"):
        Recipe.read(tmp_path / "none.toml")


def test_every_key_is_documented():
    for field in dataclasses.fields(Recipe):
        assert field.name in (Recipe.__doc__ or ""), field.name


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository(path):
    """Each reads, names a model that builds, opens with the command, and says what to expect or that it is a draft."""
    recipe = Recipe.read(path)
    head = path.read_text().split("model =")[0]
    assert f"leanconv train recipes/{path.name}" in head
    assert "Dice" in head or "Draft" in head
    assert load(recipe.model)(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"demo", "wafer", "magnetic_tile", "splconv_paper"}
