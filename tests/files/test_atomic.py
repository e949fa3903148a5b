"""A write is whole or not at all."""

import errno
import os
import shutil

import pytest

from leanconv.errors import BadInput
from leanconv.files import draft_on_demand, read_json, replace_atomic, write_atomic, write_json, write_together


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


@pytest.mark.parametrize("shared", [False, True])
def test_several_files_at_once(tmp_path, shared):
    (tmp_path / "a.txt").write_text("old")
    with draft_on_demand(tmp_path) as drafts:
        for text in ("first", "second"):
            files = {tmp_path / "a.txt": text, tmp_path / "b.bin": text.encode()}
            write_together(files, drafts() if shared else None)
            assert (tmp_path / "a.txt").read_text() == (tmp_path / "b.bin").read_text() == text
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.bin"]


def test_a_shared_draft_is_made_once_and_on_demand(tmp_path):
    with draft_on_demand(tmp_path) as drafts:
        assert os.listdir(tmp_path) == []
        assert drafts() == drafts()
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_a_draft_that_is_gone_is_no_obstacle(tmp_path):
    with draft_on_demand(tmp_path) as drafts:
        shutil.rmtree(drafts())
        write_together({tmp_path / "a.txt": "new"}, drafts())
    assert (tmp_path / "a.txt").read_text() == "new"


def test_files_that_cannot_be_drafted_leave_the_old_ones(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(BadInput, match="cannot be written"):
        write_together({tmp_path / "a.txt": "new", tmp_path / ("x" * 300): "too long a name"})
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
