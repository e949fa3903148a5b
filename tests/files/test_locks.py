"""A lock holds while its process lives, and not a moment longer."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from leanconv.files.locks import LOCK, Held, Lock, holder

HOLDS = """
import os, sys, time
from pathlib import Path
from leanconv.files.locks import Lock
with Lock(Path(sys.argv[1]), "process %d" % os.getpid()):
    told, tells = os.pipe()
    child = os.fork() if sys.argv[2] == "fork" else 1
    if child > 1:
        os.read(told, 1)  # a busy machine starts the child late
    if child:
        print(child, flush=True)
    else:
        os.write(tells, b"1")
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock, and perhaps has a child that outlives it."""
    started = []

    def start(how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDS, str(tmp_path / LOCK), how], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        started.append(int(process.stdout.readline()))
        return process

    yield start
    for each in started:
        if isinstance(each, int):
            if each > 1:
                os.kill(each, signal.SIGKILL)
        else:
            each.kill()
            each.wait()
            each.stdout.close()


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_one_process_at_a_time_and_a_killed_one_is_not_in_the_way(other, tmp_path, how):
    process, path = other(how), tmp_path / LOCK
    with pytest.raises(Held, match=f"process {process.pid}"), Lock(path):
        pass
    assert holder(path) == f"process {process.pid}"
    process.kill()
    process.wait()
    assert path.exists()  # nobody could remove it
    assert holder(path) is None
    with Lock(path, "me"):
        assert holder(path) == "me"
    assert not path.exists()
    assert holder(path) is None


def test_two_threads_of_a_process_exclude_each_other(tmp_path):
    path, order = tmp_path / LOCK, []

    def second():
        with Lock(path, patience_s=30):
            order.append("second")

    with Lock(path):
        with pytest.raises(Held), Lock(path):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not path.exists()


def test_who_waited_for_a_file_that_is_gone_locks_the_new_one(tmp_path, monkeypatch):
    """Between opening and locking the holder left and removed the file: a lock on that one would exclude nobody."""
    from leanconv.files import locks

    path, real, times = tmp_path / LOCK, locks._opened, []

    def opened(path):
        handle = real(path)
        if not times:
            path.unlink()
        times.append(handle)
        return handle

    monkeypatch.setattr(locks, "_opened", opened)
    with Lock(path):
        monkeypatch.undo()
        assert len(times) == 2
        with pytest.raises(Held), Lock(path):
            pass


@pytest.mark.parametrize("what", ["link", "folder", "pipe"])
def test_what_is_no_lock_is_left_alone(tmp_path, what):
    path, target = tmp_path / LOCK, tmp_path / "thesis.txt"
    target.write_text("mine")
    {"link": lambda: path.symlink_to(target), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[what]()
    with pytest.raises(OSError, match=r".+"), Lock(path):
        pass
    assert holder(path) in (None, "")
    assert os.path.lexists(path)
    assert target.read_text() == "mine"


def test_what_anybody_wrote_into_it_is_one_harmless_line(tmp_path):
    path = tmp_path / LOCK
    with Lock(path, "process 1\x1b[2J of a\nb" + "x" * 999):
        assert holder(path) == r"process 1\x1b[2J of a"
    with Lock(path, "x" * 999):
        assert holder(path) == "x" * 200


def test_a_child_neither_gives_back_nor_removes_its_parents_lock(tmp_path):
    lock = Lock(tmp_path / LOCK)
    with lock:
        child = os.fork()
        if child == 0:
            lock.__exit__(None, None, None)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(Held), Lock(tmp_path / LOCK):
            pass


def test_a_file_system_without_locks_is_an_error_that_says_so(tmp_path, monkeypatch):
    import errno

    from leanconv.files import locks

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(OSError, match="No locks available"), Lock(tmp_path / LOCK):
        pass
    assert holder(tmp_path / LOCK) is None
