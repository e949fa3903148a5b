"""The process that works ahead: it does its list, stands still while it rests, and never outlives its parent."""

import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from leanconv.engine import compiled
from leanconv.engine.ahead import Ahead
from leanconv.engine.workbench import Workbench
from leanconv.kernels import inductor

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="processes cannot be stopped here")
PATIENCE_S = 600.0  # it imports PyTorch, on a busy machine


@pytest.fixture
def started():
    """`started(work)`: the process, which ends with the test."""
    processes = []

    def start(work):
        processes.append(Ahead(work))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


def until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


def test_it_does_its_list_and_a_failure_stops_nothing(started, tmp_path):
    work = [(pathlib.Path.touch, (tmp_path / "a",)), (math.sqrt, ("x",)), (print, ("no byte of ours",))]
    process = started([*work, (pathlib.Path.touch, (tmp_path / "b",))])
    until(lambda: not process.busy)
    assert process.finished == [True, False, True, True]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_it_rests_with_its_compilers_and_what_they_began_is_finished(started, tmp_path):
    file = tmp_path / "beats"
    script = f"for i in $(seq 100); do echo . >> {file}; sleep 0.03; done; touch {tmp_path / 'whole'}"
    process = started([(subprocess.run, (["sh", "-c", script],))])
    until(file.exists)
    with process.rest():
        time.sleep(0.3)  # the last beat may be on its way
        size = file.stat().st_size
        time.sleep(0.6)
        assert file.stat().st_size == size
    until(lambda: file.stat().st_size > size)
    process.end()
    assert not process.busy
    until((tmp_path / "whole").exists)


PARENT = """
import os, signal, subprocess, sys, time
from leanconv.engine.ahead import Ahead
process = Ahead([(subprocess.run, (["sleep", "600"],))])
with process.rest():
    print(process._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_it_dies_with_its_parent_even_while_it_rests():
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL

    def is_gone():
        try:
            os.kill(int(done.stdout), 0)
        except ProcessLookupError:
            return True
        status = pathlib.Path(f"/proc/{int(done.stdout)}/stat")
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"

    until(is_gone)


ADOPTING = """
import ctypes, os, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: as the first process of a container
done = subprocess.run([sys.executable, "-c", sys.argv[1]], capture_output=True, text=True, process_group=0)
end = time.monotonic() + 30
while time.monotonic() < end and os.waitpid(int(done.stdout), os.WNOHANG) == (0, 0):
    time.sleep(0.05)
sys.exit(time.monotonic() >= end)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the parent's death")
def test_it_dies_with_its_parent_where_an_ancestor_adopts_it():
    """The system does not end a stopped process there: its adoptive parent could continue it."""
    parent = PARENT.replace("with process.rest():", "time.sleep(2)\nwith process.rest():")  # Python has started
    assert subprocess.run([sys.executable, "-c", ADOPTING, parent]).returncode == 0


def test_it_ends_where_the_request_to_end_is_ignored(started, tmp_path):
    """A process inherits which signals are ignored."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        process = started([(pathlib.Path.touch, (tmp_path / "begun",)), (time.sleep, (600.0,))])
    finally:
        signal.signal(signal.SIGTERM, before)
    until((tmp_path / "begun").exists)
    begun = time.monotonic()
    process.end()
    assert time.monotonic() - begun < 60


def test_what_start_up_files_print_is_no_work_done(started, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(1, b'welcome')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = started([(time.sleep, (0.0,))])
    until(lambda: not process.busy)
    assert process.finished == [True]


class Scaled(nn.Module):
    """A layer of a number that no cache has met before."""

    def __init__(self):
        super().__init__()
        self.layer, self.factor = nn.Conv2d(3, 8, 3), random.uniform(1, 2)

    def forward(self, x):
        return torch.sin(self.layer(x) * self.factor)


def kernels(model):
    """The kernels in Inductor's cache that hold the model's number, and when each was compiled."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    sources = [path for path in pathlib.Path(cache_dir()).rglob("*.cpp") if repr(model.factor) in path.read_text()]
    return {path.name: path.with_suffix(".so").stat().st_mtime_ns for path in sources}


@pytest.mark.skipif(bool(inductor.compiler_obstacle()), reason="no C++ compiler")
def test_the_engine_compiles_no_kernel_that_another_process_has_compiled(started):
    x = torch.randn(1, 3, 16, 16)
    model = Scaled().eval()
    bench = Workbench(model, (x,), {}, torch.get_num_threads())
    process = started([compiled.COMPILE.ahead(bench, None)])
    until(lambda: not process.busy)
    assert process.finished == [True]
    filled = kernels(model)
    assert filled
    form = compiled.COMPILE.prepare(bench, None)
    with torch.no_grad():
        torch.testing.assert_close(form(x), bench.model(x))
    assert kernels(model) == filled
