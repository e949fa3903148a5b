"""A write is whole or not at all."""

import errno
import os

import pytest

from leanconv.errors import BadInput
from leanconv.files import read_json, replace_atomic, write_atomic, write_json


def test_round_trip(tmp_path):
    path = write_json(tmp_path / "new" / "a.json", {"x": [1, 2]})
    assert read_json(path) == {"x": [1, 2]}
    assert os.listdir(path.parent) == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "old")

    def full(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BadInput, match="No space left"):
        replace_atomic(path, full)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_any_other_failure_leaves_the_old_file_too(tmp_path):
    path = write_atomic(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt):
        replace_atomic(path, lambda temporary: (_ for _ in ()).throw(KeyboardInterrupt))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        write_atomic(tmp_path / "a" / "b.txt", "x")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 200_000])
def test_a_file_that_is_not_json(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.json"):
        read_json(tmp_path / "a.json")
