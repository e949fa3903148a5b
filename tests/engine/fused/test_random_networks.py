"""Random networks on the fused engine against float64: 200 seeds here, any others by `pytest --seeds FIRST:END`."""

import pytest

from leanconv.kernels import backend
from tests.engine.fused.random_networks import KERNELS, command, errors


def pytest_generate_tests(metafunc):
    first, _, end = metafunc.config.getoption("--seeds").partition(":")
    metafunc.parametrize("seed", range(int(first), int(end)))


def test_a_random_network(seed):
    if seed % KERNELS == 0 and backend().why_not():
        pytest.skip(backend().why_not())
    for found in errors(seed):
        assert found.holds, f"{found}. To repeat it: {command(seed)}"
