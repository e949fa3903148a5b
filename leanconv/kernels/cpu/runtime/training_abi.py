"""The structures of training.h in ctypes, and the library with the argument types of its functions."""

import ctypes
import functools
from typing import Any

from torch import Tensor

from leanconv.errors import BadInput
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.runtime.abi import ELEMENTS
from leanconv.kernels.cpu.runtime.transpose import to_channels_last


class Map(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("sample", "row", "pixel")),
        *((name, ctypes.c_int32) for name in ("element", "unused")),
    ]

    @classmethod
    def of(cls, x: Tensor) -> "Map":
        """A map `N C H W` with channels innermost (`readable`); float32 or bfloat16."""
        sample, _, row, pixel = x.stride()
        return cls(x.data_ptr(), sample, row, pixel, ELEMENTS[x.dtype].code, 0)


class Depthwise(ctypes.Structure):
    _fields_ = [
        ("x", Map), ("y", Map),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "weight_sum", "bias_sum")),
        *(
            (name, ctypes.c_int32)
            for name in ("samples", "channels", "h", "w", "p", "q", "r", "s", "sh", "sw", "dh", "dw", "top", "left",
                         "block", "groups")
        ),
    ]  # fmt: skip


class GatedSum(ctypes.Structure):
    _fields_ = [
        *((name, Map) for name in ("a", "b", "y", "a_grad", "b_grad")),
        ("gate", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("samples", "channels", "rows", "columns")),
    ]


class NormalizedGatedSum(ctypes.Structure):
    _fields_ = [
        *((name, Map) for name in ("a", "b", "y", "a_grad", "b_grad")),
        *((name, ctypes.c_void_p * 2) for name in ("weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("gate", "statistics", "sums")),
        ("eps", ctypes.c_double * 2),
        *((name, ctypes.c_int32) for name in ("samples", "channels", "rows", "columns", "relu", "unused")),
    ]


class BatchNormAct(ctypes.Structure):
    _fields_ = [
        *((name, Map) for name in ("x", "y", "residual", "grad", "x_grad", "residual_grad")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "statistics", "sums")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("samples", "channels", "rows", "columns", "activation", "unused")),
    ]


class Pointwise(ctypes.Structure):
    _fields_ = [
        ("x", Map), ("y", Map),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "weight_sum", "bias_sum")),
        *((name, ctypes.c_int64) for name in ("weight_out", "weight_in")),
        *((name, ctypes.c_int32) for name in ("samples", "inputs", "outputs", "rows", "columns", "groups")),
    ]  # fmt: skip


class Branch(ctypes.Structure):
    _fields_ = [
        ("x", Map), ("y", Map), ("x_grad", Map),
        ("taps", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("matrix", "bias")),
        ("taps_sum", ctypes.c_void_p * 2),
        *((name, ctypes.c_void_p) for name in ("matrix_sum", "bias_sum")),
        *((name, ctypes.c_int32) for name in ("samples", "channels", "outputs", "h", "w", "stencils")),
        *((name, ctypes.c_int32 * 2) for name in ("r", "s", "dh", "dw", "top", "left")),
    ]  # fmt: skip


class HetConv(ctypes.Structure):
    _fields_ = [
        ("x", Map), ("y", Map),
        *(
            (name, ctypes.c_void_p)
            for name in ("spatial", "pointwise", "bias", "spatial_sum", "pointwise_sum", "bias_sum")
        ),
        *(
            (name, ctypes.c_int32)
            for name in ("samples", "channels", "outputs", "h", "w", "rows", "columns", "part", "r", "s", "sh", "sw",
                         "dh", "dw", "top", "left", "blocked", "full")
        ),
    ]  # fmt: skip


_STRUCTURES = (Depthwise, GatedSum, NormalizedGatedSum, Pointwise, BatchNormAct, Branch, HetConv)


@functools.lru_cache(1)
def runtime() -> Any:
    """The runtime with its argument types; None without a compiler. Raises BadInput for other structures than here."""
    lib: Any = build.runtime("training")
    if lib is None:
        return None
    sizes = [ctypes.sizeof(kind) for kind in _STRUCTURES]
    if sizes != [lib.lc_training_size(i) for i in range(len(sizes))]:
        raise BadInput(f"the kernels' runtime was built for other structures than {sizes}: clear the cache")
    for function in (
        lib.lc_depthwise, lib.lc_gated_sum, lib.lc_normalized_gated_sum, lib.lc_batch_norm_act, lib.lc_hetconv
    ):  # fmt: skip
        function.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
    for function in (
        lib.lc_depthwise_weight, lib.lc_pointwise, lib.lc_pointwise_weight, lib.lc_branch, lib.lc_branch_gradients,
        lib.lc_hetconv_weight,
    ):  # fmt: skip
        function.argtypes = (ctypes.c_void_p, ctypes.c_int32)
    return lib


def readable(x: Tensor) -> Tensor:
    """`x`, or its channels_last copy where channels are not innermost."""
    x = x.resolve_neg()  # a view of conjugated numbers has its sign in a flag
    return x if x.stride(1) == 1 or x.shape[1] == 1 else to_channels_last(x)


def checked(failed: int) -> None:
    """Raises MemoryError where a kernel reports that it failed."""
    if failed:
        raise MemoryError("a kernel for training found no memory for its scratch")
