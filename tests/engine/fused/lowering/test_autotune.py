"""Which implementations of a block are timed in turns, after a first call of each; what runs where no time is left."""

import contextlib
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.lowering import autotune
from leanconv.engine.fused.lowering.implementations import (
    IMPLEMENTATIONS,
    IN_TORCH,
    Implementation,
    plain_implementation,
)
from leanconv.engine.fused.lowering.kernels import KernelRun
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.workbench import Workbench
from leanconv.measure import Timing
from tests.engine.fused.passes.test_quantization import quantizer_of


@pytest.mark.parametrize(
    ("ms", "go_on"),
    [
        ({"aten": 22.0, "onednn": 21.0, "kernel": 20.0, "split": 90.0}, {"onednn", "kernel"}),
        ({"aten": 21.0, "onednn": 22.0, "kernel": 20.0}, {"aten", "kernel"}),
        ({"aten": 21.0, "onednn": 30.0, "kernel": 20.0}, {"aten", "kernel"}),
        ({"aten": 2.2, "onednn": 2.1, "kernel": 2.0, "split": 9.0}, {"aten", "onednn", "kernel"}),
    ],
    ids=["long: the quicker of two names for one code", "the other one", "one of them is out anyway", "short: all"],
)
def test_who_goes_on_to_the_turns(ms, go_on, monkeypatch):
    last, turns, calls = [], [], dict.fromkeys(ms, 0)

    def made(name):
        def run():
            last[:] = [name]
            calls[name] += 1
            return torch.ones(1, 1, 1, 1)

        return Implementation(name, lambda node: run)

    def once_ms(call, clock):
        call()
        return ms[last[0]]

    def in_turns(close, *_):
        turns.append(set(close))
        return {name: Timing.of([ms[name]]) for name in close}

    monkeypatch.setattr(autotune, "once_ms", once_ms)
    monkeypatch.setattr(autotune, "_turns", in_turns)
    node = SimpleNamespace(op=None, inputs=[], dtype=torch.float32)
    found = autotune._measure(node, [made(name) for name in ms], float("inf"), "wall")
    assert turns == [go_on]
    assert found == ms
    if ms["kernel"] >= autotune.LONG_MS:
        lost = {name for name in ms if ms[name] >= autotune.LOST * 20.0}
        assert calls == {name: 1 + (name in lost) for name in ms}  # the first call was the look


@pytest.mark.parametrize("stalled", [0, 1, 2])
@pytest.mark.parametrize("ms", [23.0, 2.0])
def test_one_stalled_call_does_not_rule_a_kernel_out(ms, stalled, monkeypatch):
    """A block of 10 µs got PyTorch's convolution, since one call of its kernel had taken 23 ms."""
    times = {"aten": iter([0.07] * 9), "kernel": iter([0.01] * stalled + [ms] + [0.01] * 9)}
    close = []

    def made(name, kind=object):
        class Runs(kind):
            def __init__(self):
                pass

            def __call__(self, *inputs):
                last[:] = [name]
                return torch.ones(1, 1, 1, 1)

            def launch(self, inputs):
                return None

        return Implementation(name, lambda node: Runs())

    def once_ms(call, clock):
        call()
        return next(times[last[0]])

    def in_turns(calls, *_):
        close.append(set(calls))
        return {name: Timing.of([0.01]) for name in calls}

    last = []
    monkeypatch.setattr(autotune, "once_ms", once_ms)
    monkeypatch.setattr(autotune, "_turns", in_turns)
    node = SimpleNamespace(op=None, inputs=[], dtype=torch.float32)
    found = autotune._measure(node, [made("aten"), made("kernel", KernelRun)], float("inf"), "wall")
    assert found["kernel"] == 0.01


def test_a_kernels_first_call_packs_its_weights_and_is_no_time(monkeypatch):
    """Where a plan would copy the map first, nothing launches it: it is called."""

    class Packing(KernelRun):
        def __init__(self):
            self.calls = 0

        def __call__(self, *inputs):
            self.calls += 1
            return torch.ones(1, 1, 1, 1)

        def launch(self, inputs):
            return None

    def once_ms(call, clock):
        before = run.calls
        call()
        return 5.0 if run.calls == before else 3.0 if before else 60.0

    run = Packing()
    monkeypatch.setattr(autotune, "once_ms", once_ms)
    node = SimpleNamespace(op=None, inputs=[], dtype=torch.float32)
    forms = [
        Implementation("aten", lambda node: lambda: torch.ones(1, 1, 1, 1)),
        Implementation("kernel", lambda node: run),
    ]
    assert autotune._measure(node, forms, float("inf"), "wall") == {"aten": 5.0, "kernel": 3.0}


@pytest.mark.parametrize(
    ("ms", "chosen"),
    [
        ({"aten": 22.0, "onednn": 2.0, "kernel": 3.0}, "kernel"),
        ({"aten": 22.0, "onednn": 2.0, "matrix": 3.0}, "onednn"),
        ({"aten": 2.0, "onednn": 2.5}, "aten"),
    ],
    ids=["ours", "the quickest", "a quick one of PyTorch"],
)
@pytest.mark.parametrize("seconds", [1e-9, 0.0], ids=["none left", "none"])
def test_what_a_block_gets_that_no_time_is_left_for(ms, chosen, seconds, monkeypatch):
    """Before, without a kernel, the first name of the alphabet: "aten" however slow it is."""

    def made(name):
        def run(*_):
            last[:] = [name]
            return torch.ones(1, 4, 6, 6)

        return Implementation(name, lambda node: run)

    def once_ms(call, clock):
        call()
        return ms[last[0]]

    last = []
    monkeypatch.setattr(autotune, "_MEASURED", {})
    monkeypatch.setattr(autotune, "once_ms", once_ms)
    monkeypatch.setattr(autotune, "_turns", None)
    clock = iter(range(100))
    monkeypatch.setattr(autotune.time, "perf_counter", lambda: float(next(clock)))
    quantizer = quantizer_of(nn.Conv2d(3, 4, 3, padding=1).eval(), torch.rand(1, 3, 6, 6))
    forms = IMPLEMENTATIONS | {Block: [made(name) for name in ms]}
    _, report = autotune.autotune(quantizer.graph, seconds=seconds, forms=forms)
    assert [row.chosen for row in report.rows] == [chosen]
    # The choice between float32 and int8 needs a time: that of the first call. Nothing measured has none.
    assert list(report.chosen_ms.values()) == [ms[chosen] if seconds else 0.0]
    assert not autotune._MEASURED  # it is measured when there is time


@pytest.mark.parametrize("seconds", [60.0, 1e-9, 0.0], ids=["measured", "none left", "none"])
def test_a_stalled_launch_does_not_let_the_slow_reference_of_integers_win(seconds, monkeypatch):
    """Two threads on one busy core: each launch waits for the other's turn."""
    stalled = Implementation("kernel", lambda node: partial(IN_TORCH.make(node)))
    monkeypatch.setattr(autotune, "_MEASURED", {})
    monkeypatch.setattr(autotune, "_calling", lambda run, inputs: partial(run, *inputs))
    ms = {"aten": 0.1, "kernel": 9.0}
    order = iter(["aten", "aten", "kernel", "kernel", "kernel"])
    monkeypatch.setattr(autotune, "once_ms", lambda call, clock: call() is None or ms[next(order)])
    monkeypatch.setattr(autotune, "_turns", lambda calls, *_: {name: Timing.of([ms[name]]) for name in calls})
    quantizer = quantizer_of(nn.Conv2d(3, 4, 3, padding=1).eval(), torch.rand(1, 3, 6, 6))
    graph, _ = quantizer.rewrite({*quantizer.nodes})
    forms = IMPLEMENTATIONS | {Integer: [IN_TORCH, stalled], Quantize: [IN_TORCH], Dequantize: [IN_TORCH]}
    _, report = autotune.autotune(graph, seconds=seconds, forms=forms)
    (row,) = (row for row in report.rows if row.block.startswith("int8"))
    assert row.chosen == "kernel"
    if seconds == 60.0:
        assert row.times_ms == ms
        assert len(autotune._MEASURED) == 1


def test_speeds_and_blocks_are_measured_while_all_else_rests(monkeypatch):
    resting, seen = [], []

    @contextlib.contextmanager
    def still():
        resting.append(True)
        yield
        resting.pop()

    def measure(node, choices, deadline, clock):
        seen.append(("block", bool(resting)))
        return {"aten": 1.0}

    def calibrate(target):
        seen.append(("speeds", bool(resting)))

    monkeypatch.setattr(autotune, "_MEASURED", {})
    monkeypatch.setattr(autotune, "_measure", measure)
    monkeypatch.setattr(
        autotune,
        "backend",
        lambda: SimpleNamespace(why_not=str, calibrate=calibrate, compiling_ahead=contextlib.nullcontext),
    )
    bench = Workbench(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), (torch.randn(1, 3, 16, 16),), {}, 1)
    block = [Implementation("aten", plain_implementation), Implementation("other", lambda node: None)]
    autotune.autotune(
        fuse(to_graph(bench.program)), seconds=9, forms=dict.fromkeys(IMPLEMENTATIONS, block), still=still
    )
    assert seen[0] == ("speeds", True)
    assert set(seen[1:]) == {("block", True)}
