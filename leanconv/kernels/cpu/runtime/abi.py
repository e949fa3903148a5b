"""The structures of the kernels' runtime as C has them, and its library with the types of its arguments."""

import ctypes
import functools
from typing import Any

from leanconv.errors import BadInput
from leanconv.kernels.cpu.compilation.build import runtime

DIMENSIONS, ARGUMENTS, FRAMES, PIECES = 4, 48, 8, 24
# halide_type_t: code (float 2, unsigned 1), bits, lanes; bfloat16 goes as its bits
FLOAT32, BITS16 = 2 | 32 << 8 | 1 << 16, 1 | 16 << 8 | 1 << 16


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


class Program(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int32)
            for name in ("frames", "samples", "rows", "block", "least", "half", "average", "channels", "columns",
                         "sums", "apart", "unused")
        ),
        ("sample", ctypes.c_int64), ("row", ctypes.c_int64), ("frame", ctypes.c_void_p * FRAMES),
        ("fetch", ctypes.c_void_p), ("fetches", ctypes.c_int64),
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


class Call(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("program", "pointers", "gates", "copy")]


class Copy(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("bytes", "samples")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "in_sample", "in_row", "out_sample", "out_row")),
    ]


class Piece(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("sample", "pixel")),
        *((name, ctypes.c_int32) for name in ("channels", "rows", "columns", "half")),
    ]


class Blend(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("program", "before", "weight", "bias", "scale", "shift")),
        *((name, ctypes.c_int32) for name in ("samples", "width", "parts", "gates", "averages", "first")),
        ("piece", Piece * PIECES),
    ]


@functools.lru_cache(1)
def library() -> Any:
    """The runtime with its argument types. Raises BadInput where its structures are not those of this file."""
    lib: Any = runtime()
    if lib is None:
        return None
    sizes = [ctypes.sizeof(kind) for kind in (Argument, Frame, Program, Gates, Call, Blend, Prefetch, Copy)]
    if sizes != [lib.lc_sizes(i) for i in range(len(sizes))]:
        raise BadInput(f"the kernels' runtime was built for other structures than {sizes}: clear the cache")
    pointer, i32, i64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    lib.lc_run.argtypes = (pointer, pointer, i32)
    lib.lc_average.argtypes = (pointer, i32, i64, i64, i64, i32, i32, i32, i32, pointer, i32)
    lib.lc_gates.argtypes = (pointer,)
    lib.lc_calls.argtypes = (pointer, i32, i32, pointer)
    lib.lc_blend.argtypes = (pointer, pointer, i32)
    lib.lc_copy.argtypes = (pointer, pointer, i32)
    return lib
