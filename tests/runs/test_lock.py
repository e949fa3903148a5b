"""One writer at a time in a run folder; readers are told; nothing is left of the lock."""

import os

import pytest

from leanconv.errors import BadInput
from leanconv.files import LOCK, locks
from leanconv.models import build
from leanconv.runs import RunFolder, load
from leanconv.runs.lock import in_use, writing


def test_the_second_is_told_who_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("leanconv.runs.lock._PATIENCE_S", 0.0)
    run = tmp_path / "runs" / "a"
    with writing(run, "leanconv train"):
        assert in_use(run).startswith(f"process {os.getpid()} on ")
        with pytest.raises(BadInput, match=rf"runs/a is in use by process {os.getpid()} on .*: leanconv train; wait"):
            writing(run, "leanconv convert").__enter__()
        (run / "recipe.toml").touch()
    assert in_use(run) == ""
    assert [path.name for path in run.iterdir()] == ["recipe.toml"]


def test_a_folder_that_was_made_for_nothing_goes_again(tmp_path):
    (tmp_path / "there").mkdir()
    for path in (tmp_path / "a" / "b" / "c", tmp_path / "there" / "d"):
        with pytest.raises(RuntimeError, match="no data"), writing(path, ""):
            raise RuntimeError("no data")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    with writing(tmp_path / "there", ""):
        pass
    assert (tmp_path / "there").is_dir()


@pytest.mark.parametrize("where", ["file/run", "/proc/run"])
def test_where_nothing_can_be_written(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written: "):
        writing(tmp_path / where, "").__enter__()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.warns(UserWarning, match=r"nothing keeps a second run out of it, .*No locks available"):
        writing(tmp_path / "run", "").__enter__()


def test_what_killed_writers_left_goes(tmp_path):
    """Also what the first version left, whose names are the system's random letters between ours."""
    left = ["last/.state.x1_abcde.safetensors", ".model.abcdefgh.json", ".history.abcdefgh.csv", "leanconv.lock",
            ".leanconv-abc/leanconv.lock", "last/.leanconv-abc/leanconv.lock"]  # fmt: skip
    mine = [".state.notes.txt", "last/.state.x.safetensors", ".model.backup01.json.gz", "recipe.toml"]
    for name in left + mine:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    with writing(tmp_path, ""):
        pass
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == sorted(mine)


def test_who_reads_a_run_that_is_being_written_is_told(tmp_path):
    run = RunFolder(tmp_path)
    run.write_model("leanconv:unet?base=2&levels=1")
    run.save_model(build("unet", base=2, levels=1))
    with writing(tmp_path, "leanconv train"):
        with pytest.warns(UserWarning, match=r"is being written by process .*: these are its weights so far"):
            load(tmp_path)
        (tmp_path / LOCK).write_text("")
    load(tmp_path)
