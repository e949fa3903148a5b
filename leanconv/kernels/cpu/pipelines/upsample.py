"""Transposed convolution of `ops/upsample.py` (stride = kernel) in Halide: one 1×1 for each row of the factor.

The 1×1 gives k·O numbers per pixel, which lie in the output row as k pixels side by side.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    Axes,
    Operand,
    Tile,
    bound_output,
    initial_value,
    projection,
    schedule_output,
    schedule_projection,
)


@dataclass(frozen=True)
class Rows:
    """Every k-th row of the output.

    Args:
        inputs: of each, its channels and the numbers from pixel to pixel.
        width: k·O, the numbers of an output row that one input pixel gives.
        bias: whether there is one.
        activation: the last one.
        element: of the maps.
    """

    inputs: tuple[tuple[int, int], ...]
    width: int
    bias: bool
    activation: str
    element: ElementType = FLOAT32


def pipeline(core: Rows, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: per input its map `c x y` and packed 1×1; bias. Rows have `tile.pixels` or more."""
    axes, arguments, operands, element = Axes(), [], [], core.element
    for index, (channels, pixel) in enumerate(core.inputs):
        source = map_image(f"in{index}", pixel, element)
        weights = weights_image(f"w{index}", tile.block, channels, element)
        arguments += [source, weights]
        operands.append(Operand(element.widen(source), channels, weights))
    start = initial_value(axes, core.bias, arguments)
    acc, out = projection(axes, operands, start, tile, element), halide().Func("out")
    m, x, y = axes.m, axes.x, axes.y
    out[m, x, y] = element.narrow(activate(core.activation, acc[m, x, y], m, x, y))
    # Rows inside a block of outputs: its weights stay in the cache for the whole block of rows.
    schedule_output(axes, out, core.width, tile, [y], whole_tiles=True)
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, operands, tile, element)
    bound_output(out, core.width, core.width)
    return out, arguments
