"""Max-pooling of `ops/pool.py` in Halide."""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import largest
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, map_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import Axes, Tile, bound_output
from leanconv.ops.forms import Pair


@dataclass(frozen=True)
class Pool:
    """What one kernel computes.

    Args:
        channels, pixel: of the map, and the numbers from pixel to pixel; the output is dense.
        kernel, stride, padding: rows, then columns.
        element: of the maps.
    """

    channels: int
    pixel: int
    kernel: Pair
    stride: Pair
    padding: Pair
    element: ElementType = FLOAT32


def pipeline(core: Pool, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its argument, the map `c x y`; vectorized over channels."""
    hl, axes = halide(), Axes()
    (c, x, y), source = (axes.c, axes.x, axes.y), map_image("in0", core.pixel, core.element)
    source.dim(2).set_min(0)
    w, h = source.dim(1).extent(), source.dim(2).extent()
    values = []
    for i in range(core.kernel[0]):
        for j in range(core.kernel[1]):
            # Clamping pads without a mask: the nearest pixel inside is in the window anyway and changes no maximum.
            column = hl.clamp(x * core.stride[1] + (j - core.padding[1]), 0, w - 1)
            row = hl.clamp(y * core.stride[0] + (i - core.padding[0]), 0, h - 1)
            values.append(core.element.widen(source)[c, column, row])
    out = hl.Func("out")
    out[c, x, y] = core.element.narrow_exact(largest(values))
    tail = hl.TailStrategy.RoundUp if core.channels % tile.lanes == 0 else hl.TailStrategy.Predicate
    out.split(c, axes.co, axes.ci, tile.lanes, tail).vectorize(axes.ci)
    bound_output(out, core.channels, core.channels)
    return out, [source]
