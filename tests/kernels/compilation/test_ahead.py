"""Kernels compiled in two processes at once: the list, the helper, and what becomes of it where it cannot work."""

import sys
import threading
import time

import pytest
import torch

from leanconv.kernels.cpu.bound.resample import BoundMaxPool
from leanconv.kernels.cpu.compilation import ahead, build, cache
from leanconv.kernels.cpu.compilation.permissions import BUILDING
from leanconv.ops.pool import MaxPool


@pytest.fixture
def jobs(halide, tmp_path, monkeypatch):
    """Two kernels that no cache has, their folder an empty one."""
    if not build.compiler():
        pytest.skip("needs a C compiler")
    tmp_path.chmod(0o700)
    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path))
    build._kernel.cache_clear()
    with build.listed() as found:
        for channels in (24, 40):
            image = torch.empty(1, channels, 9, 9).to(memory_format=torch.channels_last)
            BoundMaxPool(MaxPool(channels)).prepared(image)
    assert len(set(found)) == 2
    return found


def test_a_listed_kernel_is_not_compiled(jobs, tmp_path):
    assert not list(tmp_path.iterdir())


def test_other_threads_compile_while_one_lists(jobs):
    made = []
    with build.listed() as listed:
        thread = threading.Thread(target=lambda: made.append(build.kernel(*jobs[0])))
        thread.start()
        thread.join()
    assert not listed
    assert made[0][0]


def test_the_helper_fills_the_cache(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "WORTH", 1)
    monkeypatch.setattr(ahead, "_LEAVING_S", 120.0)
    monkeypatch.setattr(ahead, "usable_cores", lambda: {0, 1})
    with ahead._helper(jobs):
        pass
    assert all(cache.has(tmp_path, build.name_of(job)) for job in jobs)
    monkeypatch.setattr(build, "make", lambda job, path: pytest.fail("what the helper made is not made again"))
    assert all(build.kernel(*job)[0] for job in jobs)


@pytest.mark.parametrize("broken", ["/nowhere/python", "/bin/false"])
def test_without_a_helper_all_is_compiled_here(jobs, tmp_path, monkeypatch, broken):
    monkeypatch.setattr(ahead, "WORTH", 1)
    monkeypatch.setattr(ahead, "usable_cores", lambda: {0, 1})
    monkeypatch.setattr(sys, "executable", broken)
    ahead.compile_all(jobs)
    assert all(cache.has(tmp_path, build.name_of(job)) for job in jobs)


def test_a_helper_that_is_stopped_leaves_nothing(jobs, tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "WORTH", 1)
    monkeypatch.setattr(ahead, "usable_cores", lambda: {0, 1})

    def stopped():
        with ahead._helper(jobs):
            end = time.monotonic() + 120
            while not list(tmp_path.iterdir()) and time.monotonic() < end:  # it is at work
                time.sleep(0.005)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(BUILDING)]
