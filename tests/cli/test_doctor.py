"""`leanconv doctor` and `leanconv optimize`, as a user calls them."""

import json

import pytest
import torch


def test_doctor(leanconv):
    code, out, _ = leanconv("doctor")
    assert code == 0
    assert f"torch {torch.__version__}" in " ".join(out.split())
    code, out, _ = leanconv("doctor", "--json")
    found = json.loads(out)
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert {item["name"] for item in found["items"]} >= {"C++ compiler", "openvino [export]"}


def test_optimize(leanconv):
    words = ("optimize", "leanconv:unet", "base=4", "levels=1", "--input", "1,3,8,8", "--engines", "folded", "--json")
    code, out, err = leanconv(*words)
    assert code == 0, err
    found = json.loads(out)
    assert [row["engine"] for row in found["choices"]] == ["eager", "folded"]
    assert found["chosen"] in ("eager", "folded")


@pytest.mark.parametrize("words", [("--engines", "tensorrt"), ("--budget", "0")])
def test_optimize_refuses(leanconv, words):
    code, _, err = leanconv("optimize", "leanconv:unet", "base=4", "levels=1", "--input", "1,3,8,8", *words)
    assert code in (1, 2)
    assert len(err.splitlines()) == 1
