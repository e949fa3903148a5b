"""The measurement itself: figures that a core can have, alike from turn to turn, within its time."""

import math
import time
from dataclasses import replace

import pytest
import torch

from leanconv.kernels import this_cpu
from leanconv.kernels.cpu.calibration import probes
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.tuning.speeds import BOUNDS, Speeds

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("halide")]


@pytest.fixture(scope="module")
def seen(halide):
    if not build.compiler():
        pytest.skip("needs a C compiler")
    start = time.process_time()
    state = torch.get_rng_state()
    with build.listed() as jobs:  # as inside an engine that lists its kernels first
        found = Speeds(**probes.measure(this_cpu(), 60.0, {}))
    assert not jobs
    assert torch.equal(torch.get_rng_state(), state)
    return found, time.process_time() - start


def test_every_figure_is_measured_and_possible(seen):
    found, seconds = seen
    assert all(low <= getattr(found, name) <= high for name, (low, high) in BOUNDS.items())
    neutral = Speeds().to_dict()
    # A measured figure may happen to be the neutral one, but not most of them.
    assert sum(value != neutral[name] for name, value in found.to_dict().items()) > len(neutral) / 2
    assert seconds < 10.0


def test_ports_are_alike_in_every_measurement():
    """Loads in flight vary with what else the core does; a chain of multiply-adds does not."""
    core = probes._Core(this_cpu())
    one, two = (core.ports(this_cpu()) for _ in range(2))
    assert one["latency"] == pytest.approx(two["latency"], rel=0.15)
    assert one["narrow"] == pytest.approx(two["narrow"], rel=0.15)


def test_what_there_is_no_time_for_is_left_out_and_what_is_known_stays():
    assert probes.measure(this_cpu(), 0.0, {}) == {}
    assert probes.measure(this_cpu(), 60.0, {}, wall_s=0.0) == {}
    known = Speeds().to_dict()
    assert probes.measure(this_cpu(), 60.0, known) == known


def test_its_own_clock_is_that_of_the_thread(monkeypatch):
    """What other processes take away on a busy core is not the calibration's time, up to `wall_s`."""
    clocks = {"thread_time": 0.0, "monotonic": 0.0}
    for name in clocks:
        monkeypatch.setattr(probes.time, name, lambda name=name: clocks[name])

    def part(name):
        def measured(core, cpu):
            clocks["thread_time"] += 1.0
            clocks["monotonic"] += 5.0
            return {name: 1.5}

        return measured

    names = {"ports": "narrow", "memory": "memory_bytes", "tiles": "tile", "strassen": "strassen",
             "winograd": "winograd", "l1_winograd": "l1_winograd"}  # fmt: skip
    for method, name in names.items():
        monkeypatch.setattr(probes._Core, method, part(name))
    assert len(probes.measure(this_cpu(), 10.0, {})) == 6
    assert len(probes.measure(this_cpu(), 3.75, {})) == 3
    assert len(probes.measure(this_cpu(), 10.0, {}, wall_s=20.0)) == 4


def test_a_share_is_what_makes_the_model_right():
    """Modelled 100 and 100 + 50·share; measured: the direct sums in 200, the algorithm in 300. So the share is 1."""
    cpu = replace(this_cpu(), speeds=Speeds())
    found = {"direct": 200.0, "strassen": 300.0}
    share = probes._share(cpu, "strassen", found, 100.0, lambda cpu: 100.0 + 50.0 * cpu.speeds.strassen)
    assert math.isclose(share, 1.0)


def test_the_least_of_all_turns_counts():
    times = iter([3e-3, 1e-3] + [2e-3] * 10_000)

    def call():
        end = time.thread_time() + next(times)
        while time.thread_time() < end:
            pass

    assert probes.least_ns({"call": call})["call"] == pytest.approx(1e6, rel=0.3)
