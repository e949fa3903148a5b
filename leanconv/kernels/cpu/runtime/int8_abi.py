"""The structures of int8.h in ctypes, the library with its function, and which arithmetic this process runs.

"vectors": those of the instruction set. "amx": tiles of 16 × 64 bytes in a unit of their own (TDPBUSD). "emulated":
what AMX defines, in plain C, for processors that are described and not there. All give the same bits.
"""

import ctypes
import functools
from typing import Any

from leanconv.errors import BadInput
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.tuning.cpu import Cpu, cpuinfo, this_cpu

COPY, STENCIL, PRODUCT, POOL = range(4)
CLAMPED, ADDED, BLENDED, GENERAL = range(4)
FLOAT32, UINT8 = 0, 2
ACTIVATIONS = ("none", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu")  # elementary.h's order
MOST_RUNS, MOST_ROWS = 64, 64  # of int8_product.c and int8_stencil.c
ARITHMETICS = ("vectors", "amx", "emulated")  # of products; int8.h counts them
MOST_DEPTH = 16  # fours of bytes in a tile

I32, _I64, F32, _P = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _named(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Place(ctypes.Structure):
    _fields_ = [
        *_named(I32, "pointer element h w"),
        *_named(_I64, "offset sample row pixel channel"),
        *_named(I32, "left columns split unused step first last border"),
        ("fill", _I64),
    ]


class Segment(ctypes.Structure):
    _fields_ = [*_named(I32, "source channel count at"), ("order", _I64), ("inverse", F32), ("zero", I32)]


class Copy(ctypes.Structure):
    _fields_ = [*_named(I32, "into segments"), ("segment", _P)]


class Finish(ctypes.Structure):
    _fields_ = [
        *_named(I32, "mode activation low high zero addend addend_zero blended element"),
        *_named(F32, "addend_scale inverse"),
        ("factors", I32),
    ]


class Four(ctypes.Structure):
    _fields_ = [("row", I32 * 4), ("byte", I32 * 4)]


class Tap(ctypes.Structure):
    _fields_ = _named(I32, "quad shift")


class Stencil(ctypes.Structure):
    _fields_ = [
        *_named(I32, "source into stride top pair quads taps apart"),
        *_named(_P, "quad tap"),
        *_named(I32, "columns phases from_step into_step pixel count reach strip"),
        *_named(_I64, "weights bias multipliers"),
        ("finish", Finish),
    ]


class Run(ctypes.Structure):
    _fields_ = _named(I32, "source row column channel quads grouped")


class Block(ctypes.Structure):
    _fields_ = [*_named(I32, "vectors outputs at source"), *_named(_I64, "weights bias multipliers factor")]


class Product(ctypes.Structure):
    _fields_ = [
        *_named(I32, "into runs blocks row_stride column_stride factor_row arithmetic depth"),
        *_named(_P, "run block"),
        ("finish", Finish),
    ]


class Pool(ctypes.Structure):
    _fields_ = _named(I32, "source into r s sh sw top left")


class Step(ctypes.Structure):
    _fields_ = [*_named(I32, "kind unused"), ("what", _P)]


class Factors(ctypes.Structure):
    _fields_ = [
        *_named(I32, "kind width parts row"),
        *_named(_P, "sizes inverse"),
        *_named(I32, "first affine"),
        *_named(_I64, "weights bias scale b_scale factor third"),
        ("a_scale", F32), ("unused", I32),
        *_named(_I64, "order multipliers"),
    ]  # fmt: skip


class Call(ctypes.Structure):
    _fields_ = [
        *_named(I32, "samples rows block steps places packed"),
        *_named(_P, "step place"),
        ("scratch", _I64),
        ("factors", Factors),
        *_named(I32, "average sums channels repeat zero unused"),
        ("scale", ctypes.c_double),
    ]


_KINDS = (Place, Segment, Copy, Finish, Four, Tap, Stencil, Run, Block, Product, Pool, Step, Factors, Call)


@functools.lru_cache(1)
def runtime() -> Any:
    """The runtime with its argument types; None without a compiler. Raises BadInput for other structures than here."""
    lib: Any = build.runtime("int8")
    if lib is None:
        return None
    sizes = [ctypes.sizeof(kind) for kind in _KINDS]
    if sizes != [lib.lc_int8_size(i) for i in range(len(sizes))]:
        raise BadInput(f"the kernels' runtime was built for other structures than {sizes}: clear the cache")
    lib.lc_int8.argtypes = (_P, _P, I32)
    return lib


def vector_bytes() -> int:
    """Bytes of the vectors that the kernels were compiled for."""
    return int(runtime().lc_int8_vector())


def on_tiles(cpu: Cpu) -> str:
    """The arithmetic of products on tiles for a processor; "" where it has none, or without a runtime."""
    if not cpu.amx or runtime() is None:
        return ""
    if not this_cpu().amx:
        return "emulated"
    return "amx" if "amx_int8" in cpuinfo()[1] and runtime().lc_int8_has_amx() else ""
