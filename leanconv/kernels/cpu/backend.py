"""The CPU's backend: the engine's door (`kernels.interface`) to Halide kernels and their runtime."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

from leanconv.kernels import interface
from leanconv.kernels.cpu import availability
from leanconv.kernels.cpu.binders import BINDERS, bind, bind_to_tiles
from leanconv.kernels.cpu.bound.base import DTYPES, Bound
from leanconv.kernels.cpu.bound.quantized import bind_quantized, bind_quantized_to_tiles
from leanconv.kernels.cpu.calibration import kept
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.runtime.huge_pages import allocate
from leanconv.kernels.cpu.runtime.launch import CopyLaunch, KernelLaunch, LaunchBatch
from leanconv.kernels.cpu.runtime.transpose import Copy, copy_of
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import Form
from leanconv.ops.quantized import Quantized


class CpuBackend:
    """See `interface.Backend`."""

    dtypes: tuple[torch.dtype, ...] = DTYPES

    def why_not(self) -> str:
        return availability.why_not()

    def status(self) -> tuple[str, str]:
        return availability.status()

    def drawback(self) -> str:
        return build.obstacle()

    def facts(self) -> dict[str, str]:
        return {"instructions": availability.instructions(), "calibration": kept.status()}

    def calibration_s(self) -> float:
        return kept.pending_s()

    def calibrate(self, target: Target | None = None) -> None:
        kept.calibrated(target or Target())

    def bind(self, form: Form, weights: Sequence[Tensor], target: Target | None = None) -> Bound | None:
        if isinstance(form, Quantized):
            return bind_quantized(form, weights, target)
        return bind(form, weights, target) if type(form) in BINDERS else None

    def bind_to_tiles(self, form: Form, weights: Sequence[Tensor], target: Target | None = None) -> Bound | None:
        if isinstance(form, Quantized):
            return bind_quantized_to_tiles(form, weights, target)
        return bind_to_tiles(form, weights, target)

    def copy(self, x: Tensor, *, planes: bool) -> Copy | None:
        return copy_of(x, planes=planes)

    def allocate(self, size: int, *, huge: bool = False) -> Tensor:
        return allocate(size, huge=huge)

    def batch(self, launches: Sequence[interface.Launch]) -> LaunchBatch:
        return LaunchBatch(cast(Sequence[KernelLaunch | CopyLaunch], launches), torch.get_num_threads())

    @contextmanager
    def compiling_ahead(self) -> Iterator[None]:
        from leanconv.kernels.cpu.compilation.ahead import compile_all  # also a program of its own: not loaded before

        with build.listed() as jobs:
            yield
        compile_all(jobs)
