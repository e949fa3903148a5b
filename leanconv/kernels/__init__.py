"""Kernels of the primitives of `ops`: one folder for each kind of device, one protocol for all (`interface`)."""

from leanconv.kernels.cpu.backend import CpuBackend
from leanconv.kernels.cpu.runtime.transpose import to_channels_last, to_contiguous
from leanconv.kernels.cpu.tuning.cpu import cpuinfo, this_cpu, usable_cores
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.kernels.interface import Backend
from leanconv.table import table

__all__ = [
    "Backend",
    "Target",
    "backend",
    "cpuinfo",
    "status",
    "this_cpu",
    "to_channels_last",
    "to_contiguous",
    "usable_cores",
]

_CPU: Backend = CpuBackend()


def backend() -> Backend:
    """The backend whose kernels the engine uses: the CPU's."""
    return _CPU


def status() -> str:
    """A table of the kinds of kernels: whether they run here, and why not."""
    rows = [["cpu", *_CPU.status()], ["triton", "no", "not written yet; a GPU runs PyTorch's own"]]
    return table(["kernels", "run", "how, or why not"], rows)
