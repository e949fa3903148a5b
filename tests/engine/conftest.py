"""What several tests of the engine share."""

import math

import pytest

from leanconv.engine import race, runtimes
from leanconv.measure.hardware import number_types


@pytest.fixture(autouse=True)
def with_bfloat16(monkeypatch):
    """PyTorch and OpenVINO count as quick in bfloat16, whatever the CPU. test_slow_types.py is about others."""
    monkeypatch.setattr(number_types, "slowdown", lambda dtype: 1.0)
    monkeypatch.setattr(runtimes, "openvino_has_bfloat16", lambda: True)


@pytest.fixture
def always(monkeypatch):
    """Any right challenger counts as faster: what is tested is not the speed of this machine."""
    monkeypatch.setattr(race, "WITHIN", math.inf)
    monkeypatch.setattr(race, "LONG_WITHIN", math.inf)
    monkeypatch.setattr(race, "HOPELESS", math.inf)
    monkeypatch.setattr(race, "NEAR", math.inf)
    monkeypatch.setattr(race, "beats", lambda given: True)
