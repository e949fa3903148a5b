"""What may be asked of `leanconv lean`, and what each mistake is told."""

from pathlib import Path

import pytest

from leanconv.errors import BadInput, UnknownName
from leanconv.planner.lean.asked import Asked, factor


@pytest.mark.parametrize(("text", "value"), [("2x", 2.0), ("1.5", 1.5), (" 3X ", 3.0)])
def test_factors(text, value):
    assert factor(text) == value


@pytest.mark.parametrize("text", ["", "x", "1x", "0.5x", "nan", "inf", "-2x", "2x2", "5000x"])
def test_no_factors(text):
    with pytest.raises(BadInput, match="a factor above 1, like 2x"):
        factor(text)


@pytest.mark.parametrize(
    ("settings", "error", "what"),
    [
        ({}, BadInput, "--faster 2x .* or --to OP"),
        ({"to": "hetconv(part=4)", "candidates": ("sic",)}, BadInput, "leave one of them out"),
        ({"to": "hetconw"}, UnknownName, "hetconv"),
        ({"faster": 2.0, "candidates": ("nothing",)}, UnknownName, "nothing"),
        ({"faster": 1.0}, BadInput, "above 1"),
        ({"to": "sic", "epochs": -1}, BadInput, "--epochs -1"),
        ({"to": "sic", "lr": float("nan")}, BadInput, "--lr nan"),
        ({"to": "sic", "max_loss": 5.0}, BadInput, "from 0 to 1"),
        ({"to": "sic", "input": (1, 3, 0, 8)}, BadInput, "four sizes"),
        ({"to": "sic", "input": (1, 3, 10**6, 10**6)}, BadInput, "--input 1,3,1000000,1000000: 3000000000000 numbers"),
        ({"to": "sic", "size": 10**5}, BadInput, "--size 100000: 30000000000 numbers"),
        ({"to": "sic", "export": "model.pth"}, UnknownName, ".onnx"),
        ({"to": "sic", "out": " "}, BadInput, "name a folder"),
        ({"to": "sic", "model": ""}, BadInput, "no model reference"),
    ],
)
def test_mistakes(settings, error, what):
    with pytest.raises(error, match=what):
        Asked(**{"model": "leanconv:unet", "out": "runs/lean"} | settings)


def test_the_teacher_is_no_student(tmp_path):
    with pytest.raises(BadInput, match="the dense network's own folder"):
        Asked(model=str(tmp_path), out=str(tmp_path), to="sic")


def test_it_reads_what_it_writes():
    asked = Asked(model="leanconv:unet", out="a", faster=2.0, candidates=("sic",), input=(1, 3, 8, 8), max_loss=0.01)
    assert Asked.read(asked.to_dict(), Path("lean.json")) == asked
