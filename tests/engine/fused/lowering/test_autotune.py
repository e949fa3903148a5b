"""Which implementations of a block are timed in turns, after a first call of each: a call of a large map takes long."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.lowering import autotune
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, Implementation, plain_implementation
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.workbench import Workbench
from leanconv.measure import Timing


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
        assert set(calls.values()) == {1}  # the first call was the look


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
