"""How the engine calls kernels: launches with their operands in place, several in one call of the runtime."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from leanconv.kernels.cpu.runtime import abi
from leanconv.kernels.cpu.runtime.abi import library
from leanconv.kernels.cpu.runtime.block_loop import BlockLoop
from leanconv.kernels.cpu.runtime.int8_call import Int8Call


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
        self._structure = abi.Gates(
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
        self.address = ctypes.addressof(self._structure)
        self._keep = (first, list(rest), weight, list(vectors), out, means, sizes)

    def __call__(self) -> None:
        library().lc_gates(self.address)


class KernelLaunch:
    """A loop over blocks with its pointers, and the gates that it waits for.

    Args:
        maps: how many there are; they are the first pointers.
        fixed: what the next pointers stand for in every call: packed weights and the like.
    """

    def __init__(
        self, loop: BlockLoop | Int8Call, maps: int, fixed: Sequence[Tensor], gates: Gates | None = None
    ) -> None:
        self._pointers = (ctypes.c_void_p * loop.count)()
        self._slots = (*range(maps), *range(maps + len(fixed), loop.count))  # of each operand
        self._loop, self._gates, self._fixed = loop, gates, list(fixed)
        for index, tensor in enumerate(fixed, maps):
            self._pointers[index] = tensor.data_ptr()

    def put(self, operand: int, tensor: Tensor) -> None:
        """Use this tensor's memory for an operand."""
        self._pointers[self._slots[operand]] = tensor.data_ptr()

    def entries(self) -> list[abi.Launch]:
        """What the runtime runs for it, in this order; the structures point into the launch."""
        own = self._loop.entry(ctypes.addressof(self._pointers))
        return [own] if self._gates is None else [abi.Launch(gates=self._gates.address), own]


class CopyLaunch:
    """A copy of a map with its two pointers: from the first to the second."""

    def __init__(self, copy: abi.Copy) -> None:
        self._copy, self._pointers = copy, (ctypes.c_void_p * 2)()

    def put(self, operand: int, tensor: Tensor) -> None:
        """Use this tensor's memory for the map (0) or its copy (1)."""
        self._pointers[operand] = tensor.data_ptr()

    def entries(self) -> list[abi.Launch]:
        """What the runtime runs for it; the structure points into the launch."""
        return [abi.Launch(copy=ctypes.addressof(self._copy), pointers=ctypes.addressof(self._pointers))]


class LaunchBatch:
    """Launches that run one after the other in one call of the runtime."""

    def __init__(self, launches: "Sequence[KernelLaunch | CopyLaunch]", threads: int) -> None:
        self._keep = list(launches)
        listed: list[abi.Launch] = []
        self._ends: list[int] = []  # of each launch among the entries
        for launch in launches:
            listed += launch.entries()
            self._ends.append(len(listed))
        self._entries = (abi.Launch * len(listed))(*listed)
        self._run, self._arguments = library().lc_batch, (ctypes.addressof(self._entries), len(listed), threads)

    def __call__(self) -> None:
        """Raises MemoryError where a kernel found no memory for its scratch."""
        if self._run(*self._arguments, None):
            raise MemoryError("a kernel found no memory for its scratch")

    def timed(self) -> list[float]:
        """The same; the seconds of each launch."""
        seconds = (ctypes.c_double * len(self._entries))()
        if self._run(*self._arguments, seconds):
            raise MemoryError("a kernel found no memory for its scratch")
        starts = [0, *self._ends[:-1]]
        return [sum(seconds[start:end]) for start, end in zip(starts, self._ends, strict=True)]
