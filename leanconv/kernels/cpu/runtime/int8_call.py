"""A quantized primitive with all that is known before addresses: what the runtime's `lc_int8` runs."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from leanconv.kernels.cpu.runtime import abi, int8_abi


class Int8Call:
    """One call for one set of shapes. Immutable: any number of threads may run it at once.

    Args:
        structure: its steps and maps; `keep`: the memory that it points into.
        count: pointers of a call.
    """

    native = True

    def __init__(self, structure: int8_abi.Call, count: int, keep: Any) -> None:
        self._structure, self.count, self._keep = structure, count, keep
        self.address = ctypes.addressof(structure)
        self._pointers = ctypes.c_void_p * count
        self._run = int8_abi.runtime().lc_int8
        self._function = ctypes.cast(self._run, ctypes.c_void_p).value

    def run(self, *pointers: int) -> None:
        """Run on addresses in the order of the pointers; outputs are overwritten whole."""
        if self._run(self.address, self._pointers(*pointers), torch.get_num_threads()):
            raise MemoryError("a kernel found no memory for its scratch")

    def __call__(self, *tensors: Tensor) -> None:
        """Run on tensors in the order of the pointers."""
        self.run(*[t.data_ptr() for t in tensors])

    def entry(self, pointers: int) -> abi.Launch:
        """What the runtime runs for it, on the pointers at that address."""
        return abi.Launch(pointers=pointers, function=self._function, call=self.address)
