"""What the kernels' tests share: a cache of their own, the fair tolerance, maps of every memory layout."""

import importlib.util
import os

import pytest
import torch

from tests.cpus import CPUS


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Compiled kernels of this run go to a folder of its own; none of the user's is touched.

    Workers of pytest-xdist share the folder: a kernel that two of them need is compiled once.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEANCONV_CACHE", str(root / "kernel-cache"))
        yield


@pytest.fixture(scope="session")
def halide():
    """The library, or a skip that says how to get it."""
    if importlib.util.find_spec("halide") is None:
        pytest.skip("halide is not installed: pip install 'leanconv[cpu]'")
    import halide

    return halide


@pytest.fixture(params=CPUS)
def cpu(request):
    """Each of the described processors."""
    return CPUS[request.param]


@pytest.fixture
def two_threads():
    """Call something on two of torch's threads."""

    def run(call, *inputs):
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            return call(*inputs)
        finally:
            torch.set_num_threads(before)

    return run
