"""What is kept: a search goes on, and a damaged file costs a line."""

import json
import math

import pytest

from leanconv.errors import BadInput
from leanconv.planner.kept import Kept, default_state, digest, read_cached, write_cached


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
        b"{",
        b"[]",
        b"\xff\xfe",
        b" ",
        b"my notes",
        b'{"format": "other"}',
        b'{"searches": {}}',
        b'{"format": "leanconv search 1", "key": "k", "values": {"a": 1}}',
        b'{"format": "leanconv search 2", "searches": [1]}',
        b'{"format": "leanconv search 2", "searches": {"k": {"a": 1' + b"0" * 5000 + b"}}}",  # too long for Python
    ],
)
def test_a_file_that_no_search_wrote_stays(tmp_path, content):
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"state\.json.*it stays as it is: name a new file"):
        Kept(path, "k")
    assert path.read_bytes() == content
    cached = Kept(path, "k", cache=True)  # in our own folder it is replaced
    cached.put("a", 2.0)
    assert Kept(path, "k").get("a") == 2.0


def test_a_file_that_became_another_stays(tmp_path):
    path = tmp_path / "state.json"
    found = Kept(path, "k")
    found.put("a", 1.0)
    path.write_bytes(b"mine")
    found.put("b", 2.0)
    assert path.read_bytes() == b"mine"
    assert "not kept" in found.note
    assert found.get("b") == 2.0


def test_an_empty_file_is_a_new_one(tmp_path):
    path = tmp_path / "state.json"
    path.touch()
    Kept(path, "k").put("a", 1.0)
    assert Kept(path, "k").get("a") == 1.0


def test_no_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="a folder"):
        Kept(tmp_path, "k")


def test_searches_stand_side_by_side(tmp_path):
    path = tmp_path / "state.json"
    first, second = Kept(path, "k"), Kept(path, "l")
    first.put("a", 1.0)
    second.put("a", 2.0)
    first.put("b", 3.0)
    assert second.get("b") is None
    again, other = Kept(path, "k"), Kept(path, "l")
    assert (again.get("a"), again.get("b"), other.get("a"), other.get("b")) == (1.0, 3.0, 2.0, None)
    assert again.note == other.note == ""


@pytest.mark.parametrize(
    "values",
    [
        "[1]", "3", '{"a": "x"}', '{"a": true}', '{"a": [1]}', '{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}',
        '{"a": -1e308}', '{"a": 1e308}', '{"a": 1' + "0" * 400 + "}", '{"a": -1' + "0" * 400 + "}",
    ],
)  # fmt: skip
def test_damaged_numbers_are_measured_again(tmp_path, values):
    path = tmp_path / "state.json"
    path.write_text(f'{{"format": "leanconv search 2", "searches": {{"k": {values}, "l": {{"a": 5}}}}}}')
    found = Kept(path, "k")
    assert found.get("a") is None
    assert "started anew" in found.note
    found.put("a", 2.0)
    assert Kept(path, "k").get("a") == 2.0
    assert Kept(path, "l").get("a") == 5.0


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


def test_keys_tell_parts_apart():
    assert digest("a", 1) == digest("a", 1) != digest("a", 2)
