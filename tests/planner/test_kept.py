"""What is kept: a search goes on, and a damaged file costs a line."""

import json
import math

import pytest
import torch
from torch import nn

from leanconv.planner.kept import Kept, default_state, digest, of_model, of_tensors, read_cached, write_cached


def test_numbers_come_back(tmp_path):
    path = tmp_path / "a" / "state.json"
    first = Kept(path, "k")
    assert first.get("a") is None
    assert first.put("a", 0.25) == 0.25
    first.put("b", math.inf)
    again = Kept(path, "k")
    assert (again.get("a"), again.get("b"), again.note) == (0.25, math.inf, "")
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word))  # strict JSON


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": "other"}',
        b'{"format": "leanconv search 1", "key": "k", "values": [1]}',
        b'{"format": "leanconv search 1", "key": "k", "values": {"a": "x"}}',
        b'{"format": "leanconv search 1", "key": "k", "values": {"a": true}}',
        b'{"format": "leanconv search 1", "key": "k", "values": {"a": NaN}}',
        b'{"format": "leanconv search 1", "key": "another", "values": {"a": 1}}',
    ],
)
def test_another_file_is_started_anew(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    found = Kept(path, "k")
    assert found.get("a") is None
    assert "started anew" in found.note
    found.put("a", 2.0)
    assert Kept(path, "k").get("a") == 2.0


def test_what_cannot_be_written_is_noted(tmp_path):
    (tmp_path / "file").write_text("")
    found = Kept(tmp_path / "file" / "state.json", "k")
    found.put("a", 1.0)
    assert found.get("a") == 1.0
    assert "not kept" in found.note


def test_the_cache(cache):
    assert read_cached("x") is None
    write_cached("x", {"a": [1]})
    assert read_cached("x") == {"a": [1]}
    assert cache.stat().st_mode & 0o077 == 0  # the kernels' folder, which only its owner may open
    default_state("x").write_text("{")
    assert read_cached("x") is None


def test_digests_tell_models_apart():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    before = of_model(model)
    assert before == of_model(model)
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] += 1e-6
    assert of_model(model) != before
    assert of_model(model.to(torch.bfloat16)) != before
    assert of_tensors([torch.zeros(2, 3)]) != of_tensors([torch.zeros(3, 2)])
    assert digest("a", 1) != digest("a", 2)
