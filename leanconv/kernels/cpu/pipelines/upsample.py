"""`ops/upsample.py` in Halide: for each row of the factor a 1×1 whose results are stored pixel beside pixel."""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import FLOAT32, ElementType, image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    Axes,
    Tile,
    bound_output,
    projection,
    schedule_output,
    schedule_projection,
)


@dataclass(frozen=True)
class Rows:
    """Every k-th row of the output.

    Args:
        inputs: of each, its channels and the numbers from pixel to pixel.
        width: k·O, the numbers that one pixel of the input becomes in a row.
        bias, activation: whether and which.
        storage: of the maps.
    """

    inputs: tuple[tuple[int, int], ...]
    width: int
    bias: bool
    activation: str
    element: ElementType = FLOAT32


def pipeline(core: Rows, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: per input its map `c x y` and packed 1×1; bias. Rows have `tile.pixels` or more."""
    hl, axes, arguments, parts, element = halide(), Axes(), [], [], core.element
    for index, (channels, pixel) in enumerate(core.inputs):
        source = map_image(f"in{index}", pixel, element)
        weights = weights_image(f"w{index}", tile.block, channels, element)
        arguments += [source, weights]
        parts.append((element.widen(source), channels, weights))
    start: Any = hl.f32(0.0)
    if core.bias:
        arguments.append(image("bias", 1))
        start = arguments[-1][axes.m]
    acc, out = projection(axes, parts, start, tile, element), hl.Func("out")
    out[axes.m, axes.x, axes.y] = element.narrow(
        activate(core.activation, acc[axes.m, axes.x, axes.y], axes.m, axes.x, axes.y)
    )
    schedule_output(axes, out, core.width, tile, [axes.y], whole_tiles=True)
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, parts, tile, element)
    bound_output(out, core.width, core.width)
    return out, arguments
