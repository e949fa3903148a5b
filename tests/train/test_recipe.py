"""Recipes: typed, flat, and an unknown key names its neighbour."""

import dataclasses
import os

import pytest

from leanconv.errors import BadInput, UnknownName
from leanconv.train.recipe import Recipe
from leanconv.train.unknown_key import _ELSEWHERE, _SYNONYMS


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
    odd = 'a"b\\c?conv=splconv(alpha=0.5)\u00e9\U0001f600\x7f\n\x1b'
    recipe = Recipe(
        model=odd, data=odd, epochs=3, compile=True, lr=1e-7, momentum=0.1 + 0.2, classes=("a, b", odd),
        fail_classes=(odd,), min_area=3,
    )  # fmt: skip
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
        (
            "epochs = 3",
            ["batch=1000000000000"],
            BadInput,
            "batch=1000000000000: must be at least 1 and at most 1048576",
        ),
        ("epochs = 3", ["size=1048576"], BadInput, "size=1048576: must be at least 2 and at most 16384"),
        ("epochs = 3", ["size=1"], BadInput, "at least 2"),
        ("epochs = 3", ["threads=1000000000"], BadInput, "at most 4096"),
        ("epochs = 3", ["drop_at=82"], BadInput, "is of schedule=step, not of schedule=cosine"),
        ("epochs = 3", ["schedule=step", "drop_at=" + "9" * 5000], BadInput, "whole epochs, like"),
        ("epochs = 3", ["smoothing=1"], BadInput, "from 0 to below 1"),
        ("epochs = 3", ["nesterov=true"], BadInput, "say optimizer=sgd"),
        ("epochs = 3", ["task=detect"], BadInput, "auto, segment, classify"),
        ("epochs = 3", ["temperature_epochs=0"], BadInput, "must be above 0"),
        ("epochs = 3", ["optimizer=adam"], BadInput, "adamw, muon, sgd"),
        ("epochs = 3\n[train]\nlr = 1", [], UnknownName, "unknown recipe key 'train'"),
        ("epochs = = 3", [], BadInput, "is not TOML"),
        (
            "epochs = 3",
            ["out_channels=4"],
            UnknownName,
            "no recipe key is called 'out_channels': it is not needed: the outputs follow the classes",
        ),
        ("epochs = 3\nnum_classes = 4", [], UnknownName, "the outputs follow the classes of the data"),
        ("epochs = 3\nclasses = [1, 2]", [], BadInput, "classes takes names"),
        ('epochs = 3\nclasses = "a"', [], BadInput, "classes takes names"),
        ("epochs = 3\nfail_classes = [[]]", [], BadInput, "fail_classes takes names"),
        ("epochs = 3", ["min_area=-2"], BadInput, "min_area=-2: must be at least -1"),
        ("epochs = 3", ["merge=4000"], BadInput, "merge=4000: must be at least -1 and at most 1000"),
        ("epochs = 3", ["classes=a\udcff,b"], BadInput, "is no UTF-8 text"),
    ],
)
def test_refusals(tmp_path, text, words, error, message):
    with pytest.raises(error, match=message):
        Recipe.read(written(tmp_path, text), words)


def test_classes_as_names_or_their_number(tmp_path):
    path = written(tmp_path, 'epochs = 3\nclasses = ["background", "a, b"]\n')
    assert Recipe.read(path).class_names == Recipe.read(path).classes == ("background", "a, b")
    assert Recipe.read(path, ["classes=background, scratch"]).class_names == ("background", "scratch")
    assert Recipe.read(path, ["classes=4"]).class_names == 4
    assert Recipe.read(written(tmp_path, "epochs = 3\nclasses = 4\n")).class_names == 4
    assert Recipe(epochs=3).class_names is None


TEXT = "# Läufe 😀\nepochs = 3\n"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_recipe_as_editors_write_it(tmp_path, mark, end):
    path = tmp_path / "recipe.toml"
    path.write_bytes((mark + TEXT.replace("\n", end)).encode())
    assert Recipe.read(path) == Recipe(epochs=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "UTF-16.*save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-16.*save it as UTF-8"),
        (TEXT.encode("utf-32"), "UTF-16.*save it as UTF-8"),
        ("# Läufe\nepochs = 3".encode("cp1252"), "byte 3 is not UTF-8; save it as UTF-8"),
        (b"epochs = 3\nseed = " + b"9" * 5000, "a number in it has more than 4300 digits"),
        (b"epochs = 3\nlr = [" + b"9" * 5000 + b"]", "a number in it has more than 4300 digits"),
        (b"epochs = 3\nseed = 0x" + b"f" * 5000, "seed has thousands of digits"),
        (b"epochs = 3\nbatch = 0x" + b"f" * 5000, "batch has thousands of digits"),
        (b"epochs = 3\nlr = 0x" + b"f" * 5000, "lr takes a number"),
        (b"epochs = 3\nlr = [0x" + b"f" * 5000 + b"]", "lr takes a number"),
        (b"epochs = 3\nlr = 1" + b"0" * 400, "lr takes a number"),
        (b"epochs = 3\nlr = 1e400", "lr=inf: must be a number"),
        (b"epochs = 3\nlr = nan", "lr=nan: must be a number"),
        (b"epochs = 3\nlr = -inf", "lr=-inf: must be a number"),
        (b"epochs = 3\nzoom = inf", "zoom=inf"),
        (b"epochs = 3\nsize = -64", "size=-64: must be at least 2"),
        (b"epochs = -3", "epochs=-3: must be a number of at least 0"),
        (b"epochs = 3\nseed = -9223372036854775809", "seed has 19 digits"),
        (b"epochs = 3\nseed = 2020-01-01", r"seed = datetime.date\(2020, 1, 1\): seed takes a whole number"),
        (b"epochs = 3\nout = 10:20:30", "out takes text in quotes"),
        (b"epochs = 3\nseed = 2020-13-01", "is not TOML"),
        (b"epochs = 3\nepochs = 4", "is not TOML: Cannot overwrite a value"),
        (b"epochs = 3\nlr.start = 1", "lr takes a number"),
        (b"epochs = 3\nlr = {start = 1}", "lr takes a number"),
        (b"epochs = 3\nout = 'a\0b'", "UTF-16, or no text"),
        (b'epochs = 3\nout = "a\\u0000b"', "out='a.x00b' is no UTF-8"),
        (b"epochs = 3\nout = [" + b"[" * 9999, "is not TOML"),
        (b"# " + b"x" * 2**20, "has 1,048,578 bytes; at most 1,048,576 are allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_recipe_that_says_nothing_clear_is_one_line(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message) as found:
        Recipe.read(path)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 400


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=" + "9" * 5000], "seed='9+ ... 9+': seed takes a whole number"),
        (["seed=" + "9" * 4000], "seed has 4000 digits"),
        (["lr=1e999"], "lr=inf: must be a number"),
        (["lr=-1"], "lr=-1.0: must be a number of at least 0"),
        (["lr=1e308"], "lr=1e.308: must be a number of at most 1e.06"),
        (["zoom=1e308"], "zoom=1e.308: the largest magnification, from 1 to 64"),
        (["temperature_epochs=1e308"], "must be above 0 and at most 1e.06"),
        (["out="], "out is empty"),
        (["data= "], "data is empty"),
        (["size=inf"], "size takes a whole number"),
        (["size=1e2"], "size takes a whole number"),
        (["lr=0.1", "lr=0.2"], "lr= is given twice"),
        (["seed=2020-01-01"], "seed takes a whole number"),
        (["task=" + "x" * 5000], "auto, segment, classify"),
        ([os.fsdecode(b"data=caf\xe9")], r"data='caf.udce9' is no UTF-8 text: rename it"),
        ([os.fsdecode(b"out=caf\xe9")], r"out='caf.udce9' is no UTF-8 text: rename it"),
    ],
)
def test_a_word_that_says_nothing_clear_is_one_line(tmp_path, words, message):
    with pytest.raises(BadInput, match=message) as found:
        Recipe.read(written(tmp_path, "epochs = 3\n"), words)
    assert len(str(found.value)) < 400


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match=r"none\.toml"):
        Recipe.read(tmp_path / "none.toml")


def test_every_key_is_documented():
    for field in dataclasses.fields(Recipe):
        assert field.name in (Recipe.__doc__ or ""), field.name


KEYS = [field.name for field in dataclasses.fields(Recipe)]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("imgsz=64", "unknown recipe key 'imgsz': it is called 'size' here"),
        ("num-workers=2", "it is called 'workers' here"),
        ("LR=0.1", "it is called 'lr' here"),
        ("lr0=0.1", "it is called 'lr' here"),
        ("conf=0.3", "chosen on validation; `leanconv eval RUN --threshold .4`"),
        ("patience=3", "keep=best"),
        ("conv=splconv", r'an option of the model: model="leanconv:unet'),
        ("encoder=resnet18", "smp:Unet.encoder_name=resnet18"),
        ("resume=true", "an option: --resume"),
    ],
)
def test_an_unknown_key_says_where_the_setting_lives(word, message):
    with pytest.raises(UnknownName, match=message) as found:
        Recipe.of({"epochs": 1}, [word])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("word", ["classes", "threshold"])
def test_settings_of_the_data_and_of_later_commands(word):
    if word in KEYS:
        pytest.skip(f"{word} is a recipe key")
    with pytest.raises(UnknownName, match=r"said with the data|leanconv eval RUN --threshold"):
        Recipe.of({"epochs": 1, word: 4})


def test_what_other_tools_call_a_setting_is_one_of_ours():
    assert set(_SYNONYMS) <= set(KEYS)
    words = " ".join([*_SYNONYMS.values(), *_ELSEWHERE]).split()
    assert len(words) == len(set(words))  # one answer a word


def test_how_images_are_scaled_is_said_as_it_is():
    from leanconv.train.data.augment import MEAN, STD

    assert f"(value / 255 - {MEAN}) / {STD}" in _ELSEWHERE["mean std normalize"]
