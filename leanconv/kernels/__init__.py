"""Kernels of the primitives of `ops`: one folder for each kind of device, one protocol for all (`interface`)."""

from typing import TYPE_CHECKING

from leanconv.lazy import names_from

if TYPE_CHECKING:
    from leanconv.kernels.cpu.runtime.transpose import to_channels_last, to_contiguous
    from leanconv.kernels.cpu.tuning.cpu import cpuinfo, this_cpu, usable_cores
    from leanconv.kernels.cpu.tuning.instructions import has_amx, mask
    from leanconv.kernels.cpu.tuning.target import Target
    from leanconv.kernels.devices import backend, cache_folder, status
    from leanconv.kernels.interface import Backend

__all__ = [
    "Backend",
    "Target",
    "backend",
    "cache_folder",
    "cpuinfo",
    "has_amx",
    "mask",
    "status",
    "this_cpu",
    "to_channels_last",
    "to_contiguous",
    "usable_cores",
]

# Loaded on first use: a device's description needs no kernels.
_FILES = {
    "cpu.runtime.transpose": "to_channels_last to_contiguous",
    "cpu.tuning.cpu": "cpuinfo this_cpu usable_cores",
    "cpu.tuning.instructions": "has_amx mask",
    "cpu.tuning.target": "Target",
    "devices": "backend cache_folder status",
    "interface": "Backend",
}
if not TYPE_CHECKING:  # a checker must know every name
    __getattr__ = names_from(__name__, _FILES)
