"""Kernels of the primitives of `ops`: one folder for each kind of device, one protocol for all (`interface`)."""

from pathlib import Path

from leanconv.kernels.cpu.backend import CpuBackend
from leanconv.kernels.cpu.compilation.cache import default_folder
from leanconv.kernels.cpu.compilation.permissions import claim
from leanconv.kernels.cpu.runtime.transpose import to_channels_last, to_contiguous
from leanconv.kernels.cpu.tuning.cpu import cpuinfo, this_cpu, usable_cores
from leanconv.kernels.cpu.tuning.instructions import mask
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.kernels.interface import Backend
from leanconv.table import table

__all__ = [
    "Backend",
    "Target",
    "backend",
    "cache_folder",
    "cpuinfo",
    "mask",
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


def cache_folder() -> Path | None:
    """The folder for what is compiled and measured on this machine; None where others could write into it."""
    folder = default_folder()
    return None if claim(folder) else folder


def status() -> str:
    """A table of the kinds of kernels: whether they run here, and why not."""
    rows = [["cpu", *_CPU.status()], ["triton", "no", "not written yet; a GPU runs PyTorch's own"]]
    return table(["kernels", "run", "how, or why not"], rows)
