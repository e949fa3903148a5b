"""`leanconv doctor` and `leanconv optimize`, as a user calls them."""

import json
import sys

import pytest
import torch

from leanconv.cli.main import main


def call(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["leanconv", *words])
    try:
        main()
    except SystemExit as leave:
        return leave.code or 0, *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_doctor(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "doctor")
    assert code == 0
    assert f"torch {torch.__version__}" in " ".join(out.split())
    code, out, _ = call(monkeypatch, capsys, "doctor", "--json")
    found = json.loads(out)
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert {item["name"] for item in found["items"]} >= {"C++ compiler", "openvino [export]"}


def test_optimize(monkeypatch, capsys):
    words = ("optimize", "leanconv:unet", "base=4", "levels=1", "--input", "1,3,8,8", "--engines", "folded", "--json")
    code, out, err = call(monkeypatch, capsys, *words)
    assert code == 0, err
    found = json.loads(out)
    assert [row["engine"] for row in found["choices"]] == ["eager", "folded"]
    assert found["chosen"] in ("eager", "folded")


@pytest.mark.parametrize("words", [("--engines", "tensorrt"), ("--budget", "0")])
def test_optimize_refuses(monkeypatch, capsys, words):
    code, _, err = call(
        monkeypatch, capsys, "optimize", "leanconv:unet", "base=4", "levels=1", "--input", "1,3,8,8", *words
    )
    assert code in (1, 2)
    assert len(err.splitlines()) == 1
