"""Compilers that hang, fail, babble or write nothing: kernels run all the same, and the reason is told."""

import itertools
import os
import subprocess
import time
import warnings
from pathlib import Path

import pytest
import torch

from leanconv.kernels import inductor, limited
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.compilation import build, cache
from leanconv.kernels.cpu.runtime import abi
from leanconv.ops.separable import Separable

SCRIPTS = {
    "hangs": "sleep 300 & sleep 300",  # a driver with a child, both of which hold the output
    "fails": "printf 'a.c:1: error: \\377 no' >&2; exit 1",
    "silent": "exit 3",
    "writes nothing": "exit 0",
    "writes nonsense": 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo nonsense > "$2"; shift; done',
    "is no program": None,
}
SAID = {
    "hangs": "did not end within ",
    "fails": "failed: a.c:1: error: \N{REPLACEMENT CHARACTER} no",
    "silent": "failed: exit status 3",
    "writes nothing": "wrote nothing",
    "writes nonsense": "made no library",
    "is no program": "does not run",
}


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process that has compiled nothing yet."""
    memos = (
        build.runtime,
        build._kernel,
        build._in_process_only,
        build.compiler,
        build._kernel_source,
        build._runtime_source,
        abi.library,
    )
    memos += (inductor.compiler_obstacle,)
    for memo in memos:
        memo.cache_clear()
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(build, "_hung", {})
    monkeypatch.setattr(build, "_alone", [])
    monkeypatch.setattr(build, "_lacking", {})
    monkeypatch.setattr(cache, "_gone", {})
    yield
    for memo in memos:
        memo.cache_clear()


def script(folder, words):
    path = folder / "cc"
    path.write_bytes(b"\x7fELF nonsense" if words is None else f"#!/bin/sh\n{words}\n".encode("latin-1"))
    path.chmod(0o755)
    return path


@pytest.fixture
def also(fresh, tmp_path, monkeypatch):
    """`also(words)`: the compiler runs these words of a shell first."""
    real = build.compiler()
    if not real:
        pytest.skip("no C compiler: apt install gcc")
    build.compiler.cache_clear()
    return lambda words: monkeypatch.setenv("CC", str(script(tmp_path, f'{words}\nexec {real} "$@"')))


@torch.no_grad()
@pytest.mark.parametrize("kind", SCRIPTS)
def test_kernels_run_without_it(halide, fresh, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("CC", str(script(tmp_path, SCRIPTS[kind])))
    monkeypatch.setattr(limited, "LIMIT_S", 0.3 if kind == "hangs" else 20.0)

    def kernels_run():
        for channels in (3, 4):
            y, _ = bind(Separable((channels,), (), 2), [torch.ones(2, channels)])([torch.ones(1, channels, 4, 5)])
            assert torch.equal(y, torch.full((1, 2, 4, 5), float(channels)))

    with pytest.warns(UserWarning, match="compiled in this process alone") as seen:
        kernels_run()
    assert len(seen) == 1
    assert SAID[kind] in str(seen[0].message)
    assert SAID[kind] in build.obstacle()
    left = cache.usage(tmp_path / "kernels")
    assert left == (0, 0)


def test_what_a_compiler_babbles_is_no_failure(halide, also):
    also("i=0; while [ $i -lt 3000 ]; do echo 'warning: \xff you should not' >&2; echo more; i=$((i+1)); done")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.runtime() is not None
    assert build.obstacle() == ""


@pytest.mark.parametrize("part", build._PARTS)
def test_a_part_of_the_runtime_compiles_no_other(fresh, monkeypatch, part):
    """Seconds on a new machine: who only predicts waits for no kernel for training."""
    seen, run = [], build._cc_all
    if part != "launch":
        build.runtime()  # every part needs it
    monkeypatch.setattr(
        build, "_cc_all", lambda calls, folder: (seen.extend(itertools.chain(*calls)), run(calls, folder))
    )
    if build.runtime(part) is None:
        pytest.skip(build.obstacle())
    files, functions = build._PARTS[part]
    assert {Path(word).stem for word in seen if word.endswith(".c")} == set(files.split())
    assert all(hasattr(build.runtime(part), name) for name in functions.split())


def test_a_part_that_cannot_be_built_costs_no_other_one(halide, also):
    also('case "$*" in *batch_norm_act.c*) echo no such instruction >&2; exit 1;; esac')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build.runtime("training") is None
        assert build.runtime() is not None
    assert "no such instruction" in build.why_no("training")
    assert (build.why_no("launch"), build.obstacle()) == ("", "")


def test_without_the_first_part_there_is_none(also):
    also('case "$*" in *transpose.c*) exit 1;; esac')
    with pytest.warns(UserWarning, match="compiled in this process alone"):
        assert build.runtime("int8") is None
    assert build.why_no("int8")


@pytest.mark.parametrize("at_once", [1, 2])
def test_all_that_a_hanging_program_started_is_ended(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(limited, "LIMIT_S", 0.3)
    words = f"sleep 300 & echo $! > {tmp_path}/child; sleep 300"
    with pytest.raises(subprocess.TimeoutExpired):
        limited.run_all([["sleep", "300"], ["sh", "-c", words]][2 - at_once :], at_once=at_once)
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        status = Path(f"/proc/{child}/status")
        if status.exists() and "\nState:\tZ" in status.read_text():  # killed; nobody has asked for its status yet
            return
        time.sleep(0.05)
    pytest.fail("it lives")


@pytest.mark.parametrize("kind", ["hangs", "is no program"])
def test_torch_compile_is_not_tried_with_a_compiler_that_hangs(fresh, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("CXX", str(script(tmp_path, SCRIPTS[kind])))
    monkeypatch.setattr(limited, "LIMIT_S", 0.3)
    reason = inductor.compiler_obstacle()
    assert "torch.compile needs a C++ compiler" in reason
    assert SAID[kind] in reason
    assert str(tmp_path) in reason


def test_a_busy_machine_gets_more_time(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, seconds in ((0.5, 20.0), (2.0, 20.0), (9.0, 90.0)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0), raising=False)
        assert limited.limit_s() == seconds
    monkeypatch.delattr(os, "getloadavg")
    assert limited.limit_s() == 20.0


def test_a_server_that_a_hanging_program_left_behind_is_not_waited_for(monkeypatch):
    """It is in a session of its own and holds the output open."""
    monkeypatch.setattr(limited, "LIMIT_S", 0.3)
    start = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        limited.run(["sh", "-c", "setsid sleep 60 & sleep 60"])
    assert time.monotonic() - start < 30
