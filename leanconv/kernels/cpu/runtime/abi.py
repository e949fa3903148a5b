"""The structures of runtime.h in ctypes, and the library with its argument types."""

import ctypes
import functools
from typing import Any, NamedTuple

import torch

from leanconv.errors import BadInput
from leanconv.kernels.cpu.compilation.build import runtime

DIMENSIONS, ARGUMENTS, FRAMES = 4, 48, 8


class Element(NamedTuple):
    """How a number of a map is stored: runtime.h's code, and halide_type_t (code, bits, lanes)."""

    code: int
    halide: int


# Halide's codes: 2 for float, 1 for unsigned, 0 for signed. A kernel sees bfloat16 as its bits.
ELEMENTS = {
    torch.float32: Element(0, 2 | 32 << 8 | 1 << 16),
    torch.bfloat16: Element(1, 1 | 16 << 8 | 1 << 16),
    torch.int32: Element(2, 0 | 32 << 8 | 1 << 16),  # of a call, not of a map
}


class Dimension(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in ("min", "extent", "stride", "flags")]


class Argument(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("pointer", "dimensions", "rows", "type")),
        *((name, ctypes.c_int64) for name in ("sample", "offset", "row")),
        ("dim", Dimension * DIMENSIONS),
    ]


class Frame(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p), ("count", ctypes.c_int32), ("unused", ctypes.c_int32),
        ("arguments", Argument * ARGUMENTS),
    ]  # fmt: skip


class BlockLoop(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("frames", "samples", "rows", "block", "least", "element", "average", "channels", "columns",
                         "sums", "apart", "unit")
        ),
        ("sample", ctypes.c_int64), ("frame", ctypes.c_void_p * FRAMES),
        ("fetch", ctypes.c_void_p), ("fetches", ctypes.c_int64), ("scratch", ctypes.c_int64),
    ]  # fmt: skip


class Prefetch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("pointer", "unit", "step", "ahead", "rows", "pixels")),
        *((name, ctypes.c_int64) for name in ("sample", "offset", "pixel", "bytes")),
    ]


class Gates(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("mean_a", "means", "sizes")),
        *((name, ctypes.c_int32) for name in ("parts", "samples", "width")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "scale", "shift", "out")),
    ]


class Launch(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("loop", "pointers", "gates", "copy", "function", "call")]


class Copy(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("bytes", "samples")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "in_sample", "in_row", "out_sample", "out_row")),
    ]


@functools.lru_cache(1)
def library() -> Any:
    """The runtime with its argument types. Raises BadInput where its structures are not those of this file."""
    lib: Any = runtime()
    if lib is None:
        return None
    sizes = [ctypes.sizeof(kind) for kind in (Argument, Frame, BlockLoop, Gates, Launch, Prefetch, Copy)]
    if sizes != [lib.lc_sizes(i) for i in range(len(sizes))]:
        raise BadInput(f"the kernels' runtime was built for other structures than {sizes}: clear the cache")
    pointer, i32 = ctypes.c_void_p, ctypes.c_int32
    lib.lc_run.argtypes = (pointer, pointer, i32)
    lib.lc_gates.argtypes = (pointer,)
    lib.lc_batch.argtypes = (pointer, i32, i32, pointer)
    lib.lc_copy.argtypes = (pointer, pointer, i32)
    return lib
