"""The kinds of devices that have kernels, and the folder for what is compiled and measured on this machine."""

from pathlib import Path

from leanconv.kernels.cpu.backend import CpuBackend
from leanconv.kernels.cpu.compilation.cache import default_folder
from leanconv.kernels.cpu.compilation.permissions import claim
from leanconv.kernels.interface import Backend
from leanconv.table import table

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
