"""Kernels with their arguments for one shape: made once, called with nothing but pointers."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.runtime import abi
from leanconv.kernels.cpu.runtime.abi import library
from leanconv.kernels.cpu.runtime.transpose import Copy


@dataclass(frozen=True)
class View:
    """One argument of a kernel, in numbers: dimensions as (extent, stride), from `offset` behind a pointer.

    Args:
        pointer: index among the pointers of the call.
        sample: numbers from one sample to the next; 0 for weights.
        rows: whether the last dimension is cut to the block of rows that is being made (outputs).
        half: whether the numbers are bfloat16, else float32.
        moved: whether it begins with the block, its extent as it is: all blocks are alike, and its last dimension has
            the stride of their rows.
    """

    pointer: int
    dims: tuple[tuple[int, int], ...]
    offset: int = 0
    sample: int = 0
    rows: bool = False
    half: bool = False
    moved: bool = False


@dataclass(frozen=True)
class Work:
    """How the samples and rows of an output are made: `block` rows at a time, of at least `least` rows."""

    samples: int
    rows: int
    block: int
    least: int = 1


@dataclass(frozen=True)
class Average:
    """The map that is averaged while it is in the cache: pointers of map and result, sizes, steps in numbers, and
    whether they are bfloat16. The result is float32.

    Args:
        apart: the map's rows, where they are not those of the work: it is averaged after all blocks. 0: they are.
    """

    pointer: int
    result: int
    channels: int
    columns: int
    sample: int
    row: int
    half: bool = False
    apart: int = 0


@dataclass(frozen=True)
class Prefetch:
    """A map in memory of which each block's part is read, line by line, before the block's kernels jump about in it.

    Args:
        view: the map, `c x y`.
        unit: rows of the work that make one row of the result.
        ahead, step: the last row of the map that the first row of the result reads, and how much further each next one.
    """

    view: View
    unit: int
    ahead: int
    step: int

    def joined(self, other: "Prefetch") -> "Prefetch":
        """What covers both, of the same map."""
        first = min(self.view.offset, other.view.offset)
        end = max(view.offset + view.dims[0][0] for view in (self.view, other.view))
        view = replace(self.view, offset=first, dims=((end - first, 1), *self.view.dims[1:]))
        return replace(self, view=view, ahead=max(self.ahead, other.ahead))

    def made(self) -> abi.Prefetch:
        """As the runtime takes it."""
        (channels, _), (pixels, pixel), (rows, _) = self.view.dims
        size = 2 if self.view.half else 4
        numbers = (self.view.sample, self.view.offset, pixel, channels)
        return abi.Prefetch(
            self.view.pointer, self.unit, self.step, self.ahead, rows, pixels, *[size * number for number in numbers]
        )


class Gates:
    """The factors of a gated sum, from averages to `out` (`N 3 O`); see `lc_gates`. What it reads must not move.

    Args:
        first, rest: averages `N O`, and `N C` of each piece. weight: `C O`. vectors: bias, scale and shift, or None.
    """

    def __init__(
        self, first: Tensor, rest: Sequence[Tensor], weight: Tensor, vectors: Sequence[Tensor | None], out: Tensor
    ) -> None:
        n, _, o = out.shape
        means = (ctypes.c_void_p * len(rest))(*[x.data_ptr() for x in rest])
        sizes = (ctypes.c_int32 * len(rest))(*[x.shape[1] for x in rest])
        self._made = abi.Gates(
            first.data_ptr(),
            ctypes.addressof(means),
            ctypes.addressof(sizes),
            len(rest),
            n,
            o,
            weight.data_ptr(),
            *[None if v is None else v.data_ptr() for v in vectors],
            out.data_ptr(),
        )
        self.address = ctypes.addressof(self._made)
        self._keep = (first, list(rest), weight, list(vectors), out, means, sizes)

    def __call__(self) -> None:
        library().lc_gates(self.address)


class LaunchBatch:
    """Programs and copies with their pointers, and gates, that run one after the other in one call of the runtime."""

    def __init__(self, calls: "Sequence[tuple[Program | Copy, Any] | Gates]", threads: int) -> None:
        self._keep = list(calls)
        self._calls = (abi.Call * len(calls))()
        for made, call in zip(self._calls, calls, strict=True):
            if isinstance(call, Gates):
                made.gates = call.address
                continue
            made.pointers = ctypes.addressof(call[1])
            if isinstance(call[0], Copy):
                made.copy = call[0].address
            else:
                made.program = call[0]._address
        self._run, self._arguments = library().lc_calls, (ctypes.addressof(self._calls), len(calls), threads)

    def __call__(self) -> None:
        """Raises MemoryError where a kernel found no memory for its scratch."""
        if self._run(*self._arguments, None):
            raise MemoryError("a kernel found no memory for its scratch")

    def timed(self) -> list[float]:
        """The same; the seconds of each."""
        seconds = (ctypes.c_double * len(self._calls))()
        if self._run(*self._arguments, seconds):
            raise MemoryError("a kernel found no memory for its scratch")
        return list(seconds)


class Program:
    """Kernels that run one after the other on each block of rows, then the average of what they made.

    Immutable once made: any number of threads may call it at once.
    """

    def __init__(
        self,
        kernels: Sequence[tuple[tuple[int, Any], Sequence[View]]],
        work: Work,
        average: Average | None = None,
        fetches: Sequence[Prefetch] = (),
    ) -> None:
        self.work, self.average = work, average
        self._kernels = list(kernels)
        self._native = all(address for (address, _), _ in kernels)
        frames = [self._frame(address, views) for (address, _), views in kernels]
        made = abi.Program(frames=len(frames), samples=work.samples, rows=work.rows, block=work.block, least=work.least)
        for index, frame in enumerate(frames):
            made.frame[index] = ctypes.addressof(frame)
        if average is not None:
            made.average, made.sums, made.channels = average.pointer + 1, average.result, average.channels
            made.columns, made.sample, made.row = average.columns, average.sample, average.row
            made.half, made.apart = average.half, average.apart
        fetched = (abi.Prefetch * len(fetches))(*[fetch.made() for fetch in fetches])
        made.fetch, made.fetches = ctypes.addressof(fetched), len(fetches)
        self._keep = (made, frames, fetched)
        self._address = ctypes.addressof(made)
        count = 1 + max(max(view.pointer for _, views in kernels for view in views), average.result if average else 0)
        self._pointers = ctypes.c_void_p * count
        self._run: Any = library().lc_run if self._native else None

    @staticmethod
    def _frame(address: int, views: Sequence[View]) -> abi.Frame:
        if len(views) > abi.ARGUMENTS:
            raise BadInput(f"a kernel with {len(views)} arguments: at most {abi.ARGUMENTS}")
        frame = abi.Frame(kernel=address, count=len(views))
        for argument, view in zip(frame.arguments, views, strict=False):
            argument.pointer, argument.dimensions = view.pointer, len(view.dims)
            argument.rows = 2 if view.moved else view.rows
            size, argument.type = (2, abi.BITS16) if view.half else (4, abi.FLOAT32)
            argument.sample, argument.offset = size * view.sample, size * view.offset
            argument.row = size * view.dims[-1][1] if view.rows or view.moved else 0
            for place, (extent, stride) in enumerate(view.dims):
                argument.dim[place].extent, argument.dim[place].stride = extent, stride
        return frame

    def pointers(self) -> Any:
        """Room for the addresses of one call, in the order of the pointers."""
        return self._pointers()

    @property
    def native(self) -> bool:
        """Whether `run` can be used: the kernels are machine code of ours, not Halide's callables."""
        return self._native

    def run(self, *pointers: int) -> None:
        """Run on addresses in the order of the pointers; outputs are overwritten whole."""
        if self._run(self._address, self._pointers(*pointers), torch.get_num_threads()):
            raise MemoryError("a kernel found no memory for its scratch")

    def __call__(self, *tensors: Tensor) -> None:
        """Run on tensors in the order of the pointers."""
        if self._native:
            self.run(*[t.data_ptr() for t in tensors])
        else:
            self._in_process(tensors)

    def _in_process(self, tensors: Sequence[Tensor]) -> None:
        """Without a C compiler: sample by sample, in this thread, in blocks only where they are all alike."""
        alike = any(view.moved for _, views in self._kernels for view in views)
        block = self.work.block if alike else self.work.rows
        for n in range(self.work.samples):
            for first in range(0, self.work.rows, block):
                for (_, call), views in self._kernels:
                    call(*[_buffer(view, tensors[view.pointer], n, first, block) for view in views])
        if self.average is not None:
            a = self.average
            rows = a.apart or self.work.rows
            source = tensors[a.pointer]
            view = source.as_strided(
                (self.work.samples, rows, a.columns, a.channels),
                (a.sample, a.row, a.channels, 1),
                source.storage_offset(),
            )
            tensors[a.result].copy_(view.double().mean((1, 2)))


def _buffer(view: View, tensor: Tensor, sample: int, first: int, block: int) -> Any:
    """What a kernel is given for a block of rows that begins with `first`."""
    from leanconv.kernels.cpu.pipelines.frontend import halide

    sizes, strides = (list(numbers) for numbers in zip(*view.dims, strict=True))
    start = tensor.storage_offset() + view.offset + sample * view.sample
    if view.rows:
        sizes[-1] = block
    if view.rows or view.moved:
        start += first * strides[-1]
    flat = tensor.as_strided(sizes[::-1], strides[::-1], start)
    made = halide().Buffer((flat.view(torch.uint16) if view.half else flat).numpy(), reverse_axes=True)
    if view.rows:
        made.set_min([0] * (len(sizes) - 1) + [first])
    return made
