"""The benchmark of the loader sees a loader that holds the step back."""

import time

import pytest

from benchmarks import data_loading
from leanconv.train import setup

TINY = {"model": "leanconv:unet?base=2&levels=1", "task": "segment", "size": 16, "batch": 5}


@pytest.mark.parametrize("slow", [False, True])
def test_a_slow_loader_shows(tiny_data, monkeypatch, slow):
    monkeypatch.setitem(data_loading.RECIPES, "tiny", TINY)
    real = setup.batch_at

    def batch_at(*arguments):
        make = real(*arguments)

        def busy(step):
            until = time.thread_time() + 0.06 * slow
            while time.thread_time() < until:
                pass
            return make(step)

        return busy

    monkeypatch.setattr(setup, "batch_at", batch_at)
    found = data_loading.row("tiny", str(tiny_data), 1, 0.0)
    assert (found["images"], found["rounds"]) == (20, 3)
    assert (found["batch_cpu_ms"] > 55) == slow
    if slow:
        assert found["wall"]["middle"] > 2
        assert found["cpu"]["middle"] > 2
    assert "tiny" in data_loading.shown_as_table([found])
