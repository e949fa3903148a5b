"""What several tests of the engine share."""

import math

import pytest

from leanconv.engine import race


@pytest.fixture
def always(monkeypatch):
    """Any right challenger counts as faster: what is tested is not the speed of this machine."""
    monkeypatch.setattr(race, "WITHIN", math.inf)
    monkeypatch.setattr(race, "HOPELESS", math.inf)
    monkeypatch.setattr(race, "beats", lambda given: True)
