"""Kernels with their arguments for one shape: a loop over blocks of rows, which takes nothing but pointers."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.runtime import abi
from leanconv.kernels.cpu.runtime.abi import ELEMENTS, library


@dataclass(frozen=True)
class View:
    """One argument of a kernel, in numbers: dimensions as (extent, stride), from `offset` behind a pointer.

    Args:
        pointer: index among the pointers of the call.
        sample: numbers from one sample to the next; 0 for weights.
        rows: whether the last dimension is cut to the block of rows that is computed (outputs).
        dtype: of the numbers: float32 or bfloat16.
        moved: whether it begins with the block and keeps its extent: all blocks are alike, and its last dimension has
            the stride of their rows.
        scratch: whether it is memory of the block alone, that its kernels hand to each other: rows of the block, and
            `offset` numbers behind the start of the scratch in place of a pointer.
    """

    pointer: int
    dims: tuple[tuple[int, int], ...]
    offset: int = 0
    sample: int = 0
    rows: bool = False
    dtype: torch.dtype = torch.float32
    moved: bool = False
    scratch: bool = False


@dataclass(frozen=True)
class Work:
    """How the samples and rows of an output are computed: `block` rows at a time, at least `least` rows."""

    samples: int
    rows: int
    block: int
    least: int = 1

    @property
    def last(self) -> int:
        """Rows of the last block, which is the smallest."""
        return self.rows - (self.rows - 1) // self.block * self.block


@dataclass(frozen=True)
class Average:
    """The dense map that is averaged while it is in the cache: pointers of map and result, sizes, numbers of a sample,
    and their dtype. The result is float32.

    Args:
        unit: rows whose pixels are summed together; every block consists of such units.
        apart: the map's rows, where they are not those of the work: it is averaged after all blocks. 0: they are.
    """

    pointer: int
    result: int
    channels: int
    columns: int
    sample: int
    unit: int
    dtype: torch.dtype = torch.float32
    apart: int = 0


@dataclass(frozen=True)
class Prefetch:
    """Software prefetch: touch each cache line of the rows of a map that a block will read.

    Args:
        view: the map, `c x y`.
        unit: rows of the work that are one row of the result.
        ahead: the last row of the map that the first row of the result reads.
        step: how much further each next row of the result reads.
    """

    view: View
    unit: int
    ahead: int
    step: int

    def joined(self, other: "Prefetch") -> "Prefetch":
        """One prefetch that covers both, for the same map."""
        first = min(self.view.offset, other.view.offset)
        end = max(view.offset + view.dims[0][0] for view in (self.view, other.view))
        view = replace(self.view, offset=first, dims=((end - first, 1), *self.view.dims[1:]))
        return replace(self, view=view, ahead=max(self.ahead, other.ahead))

    def structure(self) -> abi.Prefetch:
        """As the runtime takes it."""
        (channels, _), (pixels, pixel), (rows, _) = self.view.dims
        size = self.view.dtype.itemsize
        numbers = (self.view.sample, self.view.offset, pixel, channels)
        return abi.Prefetch(
            self.view.pointer, self.unit, self.step, self.ahead, rows, pixels, *[size * number for number in numbers]
        )


class BlockLoop:
    """Kernels that run one after the other on each block of rows, then the average of their output.

    Immutable: any number of threads may call it at once. `scratch`: bytes of the views that are scratch.
    """

    def __init__(
        self,
        kernels: Sequence[tuple[tuple[int, Any], Sequence[View]]],
        work: Work,
        average: Average | None = None,
        fetches: Sequence[Prefetch] = (),
        scratch: int = 0,
    ) -> None:
        self.work, self.average = work, average
        self._kernels = list(kernels)
        self._native = all(address for (address, _), _ in kernels)
        frames = [self._frame(address, views) for (address, _), views in kernels]
        made = abi.BlockLoop(
            frames=len(frames),
            samples=work.samples,
            rows=work.rows,
            block=work.block,
            least=work.least,
            scratch=scratch,
        )
        for index, frame in enumerate(frames):
            made.frame[index] = ctypes.addressof(frame)
        if average is not None:
            made.average, made.sums, made.channels = average.pointer + 1, average.result, average.channels
            made.columns, made.sample = average.columns, average.sample
            made.element, made.apart, made.unit = ELEMENTS[average.dtype].code, average.apart, average.unit
            if not average.apart and work.block < work.rows and work.block % average.unit:
                raise BadInput(f"blocks of {work.block} rows are not whole units of {average.unit}")
        fetched = (abi.Prefetch * len(fetches))(*[fetch.structure() for fetch in fetches])
        made.fetch, made.fetches = ctypes.addressof(fetched), len(fetches)
        self._keep = (made, frames, fetched)
        self.address = ctypes.addressof(made)
        self.count = 1 + max(
            max(view.pointer for _, views in kernels for view in views), average.result if average else 0
        )
        self._pointers = ctypes.c_void_p * self.count
        self._run: Any = library().lc_run if self._native else None

    @staticmethod
    def _frame(address: int, views: Sequence[View]) -> abi.Frame:
        if len(views) > abi.ARGUMENTS:
            raise BadInput(f"a kernel with {len(views)} arguments: at most {abi.ARGUMENTS}")
        frame = abi.Frame(kernel=address, count=len(views))
        for argument, view in zip(frame.arguments, views, strict=False):
            argument.pointer, argument.dimensions = view.pointer, len(view.dims)
            argument.rows = 3 if view.scratch else 2 if view.moved else view.rows
            size, argument.type = view.dtype.itemsize, ELEMENTS[view.dtype].halide
            argument.sample, argument.offset = size * view.sample, size * view.offset
            argument.row = size * view.dims[-1][1] if view.rows or view.moved else 0
            for place, (extent, stride) in enumerate(view.dims):
                argument.dim[place].extent, argument.dim[place].stride = extent, stride
        return frame

    @property
    def native(self) -> bool:
        """Whether `run` can be used: the kernels are machine code of ours, not Halide's callables."""
        return self._native

    def entry(self, pointers: int) -> abi.Launch:
        """What the runtime runs for it, on the pointers at that address."""
        return abi.Launch(loop=self.address, pointers=pointers)

    def run(self, *pointers: int) -> None:
        """Run on addresses in the order of the pointers; outputs are overwritten whole."""
        if self._run(self.address, self._pointers(*pointers), torch.get_num_threads()):
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
                (a.sample, a.columns * a.channels, a.channels, 1),
                source.storage_offset(),
            )
            tensors[a.result].copy_(view.double().mean((1, 2)))


def _buffer(view: View, tensor: Tensor, sample: int, first: int, block: int) -> Any:
    """A kernel's argument for the block of rows that begins with `first`."""
    from leanconv.kernels.cpu.pipelines.frontend import halide

    sizes, strides = (list(numbers) for numbers in zip(*view.dims, strict=True))
    start = tensor.storage_offset() + view.offset + sample * view.sample
    if view.rows:
        sizes[-1] = block
    if view.rows or view.moved:
        start += first * strides[-1]
    flat = tensor.as_strided(sizes[::-1], strides[::-1], start)
    made = halide().Buffer(
        (flat.view(torch.uint16) if view.dtype == torch.bfloat16 else flat).numpy(), reverse_axes=True
    )
    if view.rows:
        made.set_min([0] * (len(sizes) - 1) + [first])
    return made
