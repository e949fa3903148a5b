"""Kernels for this machine's CPU, written in Halide.

bound/        a primitive with its weights packed: which kernels run for a set of shapes
pipelines/    what is compiled: the Halide pipelines
tuning/       which tile and which algorithm: a cost model of the processor
calibration/  how fast this core is, measured once
compilation/  from pipelines to machine code, and the cache of it
runtime/      how kernels are called: launches, memory, copies between layouts, the C runtime
backend.py    the engine's door to all of it (`kernels.interface`)
"""

from typing import TYPE_CHECKING

from leanconv.lazy import names_from

if TYPE_CHECKING:
    from leanconv.kernels.cpu.binders import bind
    from leanconv.kernels.cpu.tuning.cpu import Cpu, this_cpu
    from leanconv.kernels.cpu.tuning.target import Target

__all__ = ["Cpu", "Target", "bind", "this_cpu"]

_FILES = {"binders": "bind", "tuning.cpu": "Cpu this_cpu", "tuning.target": "Target"}
if not TYPE_CHECKING:  # a checker must know every name
    __getattr__ = names_from(__name__, _FILES)
