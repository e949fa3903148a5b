"""A gated sum from its maps in one call of the runtime: the averages that are missing, the gates, the kernel; and
before all that, perhaps, the program that makes its first map.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.runtime import abi
from leanconv.kernels.cpu.runtime.abi import PIECES, library
from leanconv.kernels.cpu.runtime.launch import Program
from leanconv.kernels.cpu.runtime.tensors import pixel_stride


class Blend:
    """The program of a gated sum with what its gates are made of. Immutable: any number of threads may run it.

    Args:
        program: its pointers are the maps, the gates (which are made here), and what else it takes.
        maps: like those of the calls: a, then the pieces of the 1×1's input.
        weight: `C O`. vectors: bias, scale and shift of `O` numbers, or None.
        before: a native program that makes a and its average; its own pointers stand last.
    """

    def __init__(
        self,
        program: Program,
        maps: Sequence[Tensor],
        weight: Tensor,
        vectors: Sequence[Tensor | None],
        before: Program | None = None,
    ) -> None:
        if len(maps) > PIECES:
            raise BadInput(f"a gated sum of {len(maps)} maps: at most {PIECES}")
        count = len(program.pointers())
        first = count + len(maps)
        n, _, h, w = maps[0].shape
        self._made = abi.Blend(
            program._address,
            None if before is None else before._address,
            weight.data_ptr(),
            *[None if v is None else v.data_ptr() for v in vectors],
            n,
            maps[0].shape[1],
            len(maps) - 1,
            len(maps),
            count,
            first,
        )
        for piece, x in zip(self._made.piece, maps, strict=False):
            piece.sample, piece.pixel, piece.channels = x.stride(0) if n > 1 else 0, pixel_stride(x), x.shape[1]
            piece.rows, piece.columns, piece.half = h, w, x.dtype.itemsize == 2
        self._keep = (program, before, weight, list(vectors))
        self._pointers = ctypes.c_void_p * (first + (0 if before is None else len(before.pointers())))
        self._address, self._run = ctypes.addressof(self._made), library().lc_blend

    def run(self, pointers: Sequence[int | None]) -> None:
        """On addresses: the program's, the maps' averages (None: computed here), then those of `before`.

        Raises: MemoryError where there is no memory for its scratch.
        """
        if self._run(self._address, self._pointers(*pointers), torch.get_num_threads()):
            raise MemoryError("a kernel found no memory for its scratch")
