"""What a killed writer leaves is removed by the next one; what a living one writes, and what is not ours, is not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from leanconv.errors import BadInput
from leanconv.files import LOCK, draft, drafts, write_atomic

# Dies, or waits, in the middle of writing a file.
WRITES = """
import os, signal, sys, time
from leanconv.files import replace_atomic
def write(path):
    path.write_text("half")
    print("half", flush=True)
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
replace_atomic(sys.argv[1], write)
"""


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch):
    """A process looks once into each folder."""
    monkeypatch.setattr(drafts, "_swept", set())


def writer(path, how):
    process = subprocess.Popen([sys.executable, "-c", WRITES, str(path), how], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_kill_in_mid_write_leaves_nothing_for_ever(tmp_path):
    write_atomic(tmp_path / "state.safetensors", "old")
    killed = writer(tmp_path / "state.safetensors", "dies")
    assert killed.wait() == -signal.SIGKILL
    killed.stdout.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "state.safetensors").read_text() == "old"
    drafts._swept.clear()
    write_atomic(tmp_path / "another.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another.txt", "state.safetensors"]


def test_a_living_writers_draft_stays(tmp_path):
    living = writer(tmp_path / "a.txt", "waits")
    try:
        (half,) = tmp_path.glob(".leanconv-*/a.txt")
        write_atomic(tmp_path / "b.txt", "new")
        assert half.read_text() == "half"
    finally:
        end(living)
    drafts._swept.clear()
    write_atomic(tmp_path / "c.txt", "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "c.txt"]


def test_what_is_not_ours_is_never_removed(tmp_path):
    (tmp_path / ".leanconv-notes").write_text("mine")
    (tmp_path / ".leanconv-settings").mkdir()
    (tmp_path / ".leanconv-settings" / "a").write_text("mine")
    (tmp_path / ".leanconv-link").symlink_to(tmp_path)
    (tmp_path / ".leanconv-new").mkdir()
    (tmp_path / ".leanconv-old").mkdir()
    for name in ("settings", "old"):
        os.utime(tmp_path / f".leanconv-{name}", (0, 0))
    drafts.sweep(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".leanconv-notes", ".leanconv-settings", ".leanconv-link", ".leanconv-new"}


def test_a_draft_works_where_nothing_can_be_locked(tmp_path, monkeypatch):
    from leanconv.files import locks

    monkeypatch.setattr(locks.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(95, "Operation not supported")))
    with draft(tmp_path) as folder:
        drafts._swept.clear()
        write_atomic(tmp_path / "a.txt", "new")  # whose sweep cannot know whether the other is alive
        assert folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_sweeper_that_was_quicker_costs_a_second_try(tmp_path, monkeypatch):
    from leanconv.files import Held, Lock

    real, tries = Lock.__enter__, []

    def enter(self):
        tries.append(self.path)
        if len(tries) == 1:
            raise Held("")
        return real(self)

    monkeypatch.setattr(Lock, "__enter__", enter)
    with draft(tmp_path) as folder:
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert len(tries) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "ü" * 125 + ".txt", ".hidden", "a b.txt"])
def test_names_as_long_as_the_system_takes(tmp_path, name):
    assert write_atomic(tmp_path / name, "x").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_file_takes_the_place_of_a_pipe_or_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(BadInput, match="a device or a pipe"):
            write_atomic(path, "x")
    assert not (tmp_path / "pipe").is_file()


def test_the_mode_is_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        assert write_atomic(tmp_path / "a.txt", "x").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_a_folder_is_looked_through_once(tmp_path, monkeypatch):
    seen, real = [], drafts.sweep
    monkeypatch.setattr(drafts, "sweep", lambda *a: (seen.append(time.time()), real(*a)))
    for name in "abc":
        write_atomic(tmp_path / name, "x")
    assert len(seen) == 1
