"""Interleaving: the order, the counts, the statistics; no test here depends on how fast the machine is."""

import itertools
import threading
import time

import numpy as np
import pytest
import torch

from leanconv.errors import BadInput
from leanconv.measure.device import describe, label
from leanconv.measure.timing import latency
from leanconv.measure.timing.latency import Timing, interleave, quantile


def test_calls_are_interleaved_and_nobody_always_follows_the_same_one():
    calls = []
    result = interleave(
        {name: (lambda name=name: calls.append(name)) for name in "abc"},
        budget_s=0,
        warmup=1,
        min_rounds=12,
        max_rounds=12,
    )
    rounds = ["".join(calls[at : at + 3]) for at in range(0, len(calls), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    before = {name: {a for a, b in itertools.pairwise(calls[3:]) if b == name != a} for name in "abc"}
    assert before == {"a": {"b", "c"}, "b": {"a", "c"}, "c": {"a", "b"}}
    assert list(result) == ["a", "b", "c"]
    assert {t.rounds for t in result.values()} == {12}


def test_max_rounds_ends_a_large_budget():
    assert interleave({"a": lambda: None}, budget_s=60, max_rounds=7)["a"].rounds == 7


def test_primed_each_timed_call_follows_one_of_the_same():
    calls = []
    pair = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    assert interleave(pair, budget_s=0, warmup=0, min_rounds=4, primed=True)["a"].rounds == 4
    assert len(calls) == 16
    assert calls[::2] == calls[1::2]


def test_an_accelerator_is_waited_for_before_and_after_each_call(monkeypatch):
    told = []
    monkeypatch.setattr(latency, "has_accelerator", lambda: True)
    monkeypatch.setattr(latency, "synchronize", lambda: told.append("wait"))
    latency.once_ms(lambda: told.append("call"))
    assert told == ["wait", "call", "wait"]


def test_a_slower_call_is_measured_slower():
    def work(n):
        return lambda: sum(range(n))

    times = interleave({"small": work(1_000), "large": work(100_000)}, budget_s=0.2, min_rounds=5)
    assert times["large"].median_ms > 10 * times["small"].median_ms


def test_statistics_are_numpys():
    values = [float(v) for v in np.random.default_rng(0).exponential(size=37)]
    timing = Timing.of(values)
    assert timing.median_ms == pytest.approx(np.median(values))
    assert timing.p95_ms == pytest.approx(np.quantile(values, 0.95))
    assert timing.iqr_ms == pytest.approx(np.quantile(values, 0.75) - np.quantile(values, 0.25))
    assert quantile([3.0], 0.95) == 3.0


def test_progress_is_told_after_every_round_and_ends_at_one():
    seen = []
    interleave({"a": lambda: None}, budget_s=60, max_rounds=5, on_round=seen.append)
    assert len(seen) == 5
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("wrong", [{"candidates": {}}, {"min_rounds": 0}, {"max_rounds": 1}, {"warmup": -1}])
def test_refusals(wrong):
    with pytest.raises(BadInput):
        interleave(**{"candidates": {"a": lambda: None}, **wrong})


def test_an_error_of_a_candidate_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        interleave({"a": lambda: 1 / 0})


def test_the_label_says_device_threads_dtype_layout_batch_and_shape():
    text = label("cpu", dtype=torch.bfloat16, layout="channels_last", shape=(2, 3, 64, 96))
    for word in (describe()["name"], "1 thread", "bfloat16", "channels_last", "batch 2", "3x64x96", torch.__version__):
        assert word in text


def test_the_cpu_clock_leaves_out_what_is_not_computed():
    timing = interleave({"sleep": lambda: time.sleep(0.02)}, budget_s=0, min_rounds=3, clock="cpu")["sleep"]
    assert timing.median_ms < 10
    assert interleave({"sleep": lambda: time.sleep(0.02)}, budget_s=0)["sleep"].median_ms >= 20


def test_the_process_clock_sees_what_another_thread_computes():
    def elsewhere():
        thread = threading.Thread(target=lambda: sum(range(1_000_000)))
        thread.start()
        thread.join()

    one, whole = (interleave({"a": elsewhere}, budget_s=0, clock=clock)["a"].median_ms for clock in ("cpu", "process"))
    assert whole > 3 * one
    assert interleave({"a": lambda: time.sleep(0.02)}, budget_s=0, clock="process")["a"].median_ms < 10


@pytest.mark.parametrize("clock", ["cpu", "process"])
def test_computing_time_is_refused_where_it_would_be_that_of_one_thread_or_the_sum_of_several(clock):
    torch.set_num_threads(2)
    try:
        with pytest.raises(BadInput, match="set_num_threads"):
            interleave({"a": lambda: None}, clock=clock)
    finally:
        torch.set_num_threads(1)
    with pytest.raises(BadInput, match="known: wall, cpu"):
        interleave({"a": lambda: None}, clock="sun")
