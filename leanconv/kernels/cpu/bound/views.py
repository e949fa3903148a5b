"""Operands of kernels as views: maps, planes, vectors, packed weights, outputs and their averages."""

from torch import Tensor

from leanconv.kernels.cpu.pipelines.element import ElementType
from leanconv.kernels.cpu.runtime.block_loop import Average, View
from leanconv.kernels.cpu.runtime.tensors import pixel_stride


def map_view(pointer: int, x: Tensor, first: int, channels: int) -> View:
    """Channels of a map as `c x y`."""
    n, _, h, w = x.shape
    pixel = pixel_stride(x)
    return View(
        pointer,
        ((channels, 1), (w, pixel), (h, w * pixel)),
        first,
        x.stride(0) if n > 1 else 0,
        dtype=x.dtype,
    )


def planes_view(pointer: int, x: Tensor) -> View:
    """An image in planes as `x c y`."""
    n, c, h, w = x.shape
    return View(pointer, ((w, 1), (c, h * w), (h, w)), 0, c * h * w if n > 1 else 0, dtype=x.dtype)


def flat_view(pointer: int, x: Tensor, first: int, channels: int) -> View:
    """Channels of a map as `c x`, all pixels in a row."""
    n, _, h, w = x.shape
    return View(
        pointer,
        ((channels, 1), (h * w, pixel_stride(x))),
        first,
        x.stride(0) if n > 1 else 0,
        dtype=x.dtype,
    )


def vector_view(pointer: int, length: int, offset: int = 0, sample: int = 0) -> View:
    """A vector; `sample` numbers from one sample's to the next."""
    return View(pointer, ((length, 1),), offset, sample)


def weights_view(pointer: int, packed: Tensor) -> View:
    """Packed weights, the last dimension innermost."""
    dims = tuple(zip(reversed(packed.shape), reversed(packed.stride()), strict=True))
    return View(pointer, dims, dtype=packed.dtype)


def out_view(pointer: int, size: tuple[int, int, int, int], first: int, channels: int, element: ElementType) -> View:
    """Channels of a dense output as `c x y`, rows cut to the block."""
    _, o, p, q = size
    return View(pointer, ((channels, 1), (q, o), (p, q * o)), first, p * q * o, rows=True, dtype=element.dtype)


def flat_out_view(pointer: int, size: tuple[int, int, int, int], element: ElementType) -> View:
    """A dense output as `c x`, pixels cut to the block."""
    _, o, p, q = size
    return View(pointer, ((o, 1), (p * q, o)), 0, p * q * o, rows=True, dtype=element.dtype)


def average_of(
    pointer: int,
    result: int,
    size: tuple[int, int, int, int],
    element: ElementType,
    unit: int,
    flat: bool = False,
    apart: bool = False,
) -> Average:
    """The average of a dense output: computed in blocks of rows, of pixels (`flat`), or after all blocks (`apart`).

    `unit`: rows of the output that are summed together, see `cost_model.summed_rows`.
    """
    _, o, p, q = size
    numbers = (1, p * q * o, unit * q) if flat else (q, p * q * o, unit)
    return Average(pointer, result, o, *numbers, element.dtype, p if apart else 0)
