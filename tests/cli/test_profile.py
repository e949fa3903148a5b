"""`leanconv profile` and `leanconv bench`, as a user types them."""

import json
import sys

import pytest

from leanconv.cli.main import main

SMALL = ["leanconv:unet", "base=4", "levels=2"]
QUICK = ["--threads", "1", "--budget", "0"]


@pytest.fixture
def leanconv(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["leanconv", *words])
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_profile_prints_the_table_and_the_same_numbers_as_json(leanconv, tmp_path):
    out = tmp_path / "profile.json"
    options = ["--input", "1,3,32,32", *QUICK, "--convention", "torchstat"]
    words = ["profile", *SMALL, "conv=splconv(alpha=0.5)", *options, "--out", str(out)]
    code, printed, _ = leanconv(*words, "--json")
    assert code == 0
    data = json.loads(printed)
    assert data == json.loads(out.read_text())
    assert data["total"]["params"] == data["conventions"]["torchstat"]["params"]
    assert data["device"]["threads"] == 1
    assert any(layer["type"] == "SPLConv2d" for layer in data["layers"])
    code, table, _ = leanconv(*words[:-1], str(tmp_path / "profile.txt"))
    assert code == 0
    assert (tmp_path / "profile.txt").read_text() == table
    assert "SPLConv2d" in table


def test_bench_compares_models_and_their_training_steps(leanconv):
    words = ["bench", *SMALL, *SMALL, "conv=splconv", "--input", "2,3,32,32", *QUICK, "--train", "--clock", "cpu"]
    code, printed, _ = leanconv(*words, "--json")
    assert code == 0
    data = json.loads(printed)
    names = ["leanconv:unet?base=4&levels=2", "leanconv:unet?base=4&levels=2&conv=splconv"]
    assert [m["name"] for m in data["inference"]["models"]] == names
    assert data["inference"]["models"][0]["speedup"] == 1.0
    assert data["inference"]["clock"] == data["training"]["clock"] == "cpu"
    steps = {(s["name"], s["setting"]) for s in data["training"]["steps"]}
    assert steps == {(n, s) for n in names for s in ("eager", "channels_last")}
    code, table, _ = leanconv(*words, "--dtype", "bfloat16", "--channels-last")
    assert code == 0
    for text in ("1.00x", "channels_last", "bfloat16", "batch 2"):
        assert text in table


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["profile", "leanconv:unet", "--convention", "torchstats", "--input", "1,3,32,32"], 2, "did you mean"),
        (["profile", "leanconv:unet", "--input", "1,5,32,32"], 1, "C=3"),
        (["profile", "leanconv:unet", "--input", "one"], 1, "--input"),
        (["profile", "leanconv:unet", "timm:resnet18"], 1, "one model is needed"),
        (["profile", "leanconv:unet", "--device", "abacus"], 1, "not usable here"),
        (["bench", "base=32"], 1, "before any model"),
        (["bench", "leanconv:nonet"], 2, "unknown"),
        (["bench", *SMALL, "--clock", "sun", "--input", "1,3,32,32"], 1, "known: wall, cpu"),
    ],
)
def test_bad_input_is_one_line(leanconv, words, code, message):
    left, _, printed = leanconv(*words)
    assert left == code
    assert message in printed
    assert len(printed.strip().splitlines()) == 1
    assert "Traceback" not in printed
