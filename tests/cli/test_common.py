"""The words that commands share."""

import json
import subprocess
import sys

import pytest
import torch

from leanconv.cli.common import Dtype, example, reference, references, report, shape, shape_of, torch_device
from leanconv.errors import BadInput
from leanconv.train.recipe import Recipe


def test_words_join_the_model_before_them():
    words = ["leanconv:unet", "base=32", "conv=splconv(alpha=0.5)", "timm:resnet18", "leanconv:unet?base=8", "levels=3"]
    assert references(words) == [
        "leanconv:unet?base=32&conv=splconv(alpha=0.5)",
        "timm:resnet18",
        "leanconv:unet?base=8&levels=3",
    ]
    assert reference(["leanconv:unet?base=8"]) == "leanconv:unet?base=8"  # '=' inside a reference is no word


@pytest.mark.parametrize("words", [["base=32"], ["a:b", "c:d"], [], ["a:b", "x=1&y=2"]])
def test_words_that_name_no_single_model(words):
    with pytest.raises(BadInput):
        reference(words)


def test_shapes():
    assert shape("1,3,512,512") == shape("1x3x512x512") == (1, 3, 512, 512)
    for text in ("", "3", "1,3,a", "1,0,4,4", "1,-3,4,4", "1;3"):
        with pytest.raises(BadInput, match="--input"):
            shape(text)


def test_without_input_it_is_an_image_of_the_runs_size(tmp_path):
    for name, size in (("small", 32), ("again", 32), ("large", 128)):
        (tmp_path / name).mkdir()
        Recipe(model="timm:resnet18", data="images", out="run", size=size, epochs=1).write(
            tmp_path / name / "recipe.toml"
        )
    small, again, large = (str(tmp_path / name) for name in ("small", "again", "large"))
    assert shape_of(None, ["timm:resnet18"]) == shape_of(None, [str(tmp_path)]) == "1,3,224,224"
    assert shape_of(None, ["timm:resnet18", small, again]) == "1,3,32,32"
    assert shape_of("2,3,48,48", [small, large]) == "2,3,48,48"
    with pytest.raises(BadInput, match=r"small 32, .*large 128\): say --input"):
        shape_of(None, [small, large])


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ('size = 64\nepochs = 1\nteacher = "/gone"\nof_a_newer_version = 1\n', 64),
        ("size = 64\n", 64),
        ("epochs = 1\n", 224),
        ('size = "large"\n', 224),
        ("size = -3\n", 224),
        ("size = 999999999\n", 224),
        ("no TOML", 224),
    ],
)
def test_a_recipe_is_asked_for_nothing_but_its_size(text, side, tmp_path):
    (tmp_path / "recipe.toml").write_text(text)
    assert shape_of(None, [str(tmp_path)]) == f"1,3,{side},{side}"


def test_example_is_seeded_and_has_the_asked_form():
    x = example("2,3,8,10", Dtype.bfloat16, channels_last=True)
    assert x.shape == (2, 3, 8, 10)
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, example("2,3,8,10", Dtype.bfloat16))
    with pytest.raises(BadInput, match="four sizes"):
        example("2,3", channels_last=True)


@pytest.mark.parametrize("text", ["1,3,999999999,999999", f"1,3,{2**63},{2**63}"])
def test_an_input_that_no_memory_holds_is_the_callers(text):
    with pytest.raises(BadInput, match=r"--input .*no memory holds that"):
        example(text)


def test_an_unknown_device_is_one_readable_line():
    with pytest.raises(BadInput, match="not usable here"):
        torch_device("quantum")


def test_report_writes_numbers_or_table(tmp_path, capsys):
    class Result:
        def __str__(self):
            return "the table"

        def to_dict(self):
            return {"n": 1}

    report(Result(), json=False, out=tmp_path / "r.json")
    report(Result(), json=True, out=tmp_path / "r.txt")
    assert json.loads((tmp_path / "r.json").read_text()) == {"n": 1}
    assert (tmp_path / "r.txt").read_text() == "the table\n"
    assert capsys.readouterr().out == 'the table\n{\n  "n": 1\n}\n'


def test_importing_the_shared_words_does_not_import_torch():
    code = "import sys, leanconv.cli.common; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
