"""1×1 convolutions in Halide: all pixels of a map in a row, any number of inputs, with or without a gate.

Serves `ops/separable.py` where there is no stencil, and the second pass of `ops/gated_sum.py`.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import BFLOAT16, FLOAT32, ElementType, image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    Axes,
    Tile,
    bound_output,
    projection,
    schedule_copy,
    schedule_output,
    schedule_projection,
    start_of,
)


@dataclass(frozen=True)
class Pointwise:
    """What one kernel computes.

    Args:
        inputs: of each, its channels and the numbers from pixel to pixel.
        out_channels: O; the output is dense.
        bias: whether one is added.
        activation: the last one.
        residual: numbers from pixel to pixel of the map that is added before it; 0 for none.
        gate: whether each input comes with one factor per channel.
        storage: of the maps.
        blend: y = act(a·first + (W·x)·second + third) with the map `residual` as a, and three numbers per channel.
    """

    inputs: tuple[tuple[int, int], ...]
    out_channels: int
    bias: bool = False
    activation: str = "none"
    residual: int = 0
    gate: bool = False
    blend: bool = False
    element: ElementType = FLOAT32


def pipeline(core: Pointwise, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: per input its map `c x`, packed 1×1 and gate; bias; residual; first second third.

    There must be at least `tile.pixels` pixels, in the map and in each block of them.
    """
    hl, axes, arguments, parts, scratch = halide(), Axes(), [], [], []
    element = core.element
    for index, (channels, pixel) in enumerate(core.inputs):
        source = map_image(f"in{index}", pixel, element, 2)
        weights = weights_image(f"w{index}", tile.block, channels, element)
        arguments += [source, weights]
        factors = element.widen(source)
        if core.gate or element == BFLOAT16:  # widened once, not for every block of outputs
            value = factors[axes.c, axes.x]
            if core.gate:
                gate = image(f"gate{index}", 1)
                arguments.append(gate)
                value = value * element.quiet_nan(gate[axes.c])
            func = hl.Func(f"gated{index}")
            func[axes.c, axes.x] = element.to_scratch(value)
            scratch.append((func, channels))
            factors = element.from_scratch(func)
        parts.append((factors, channels, weights))
    start = start_of(axes, core.bias, arguments)
    acc = projection(axes, parts, start, tile, element, flat=True)
    value = acc[axes.m, axes.x]
    if core.residual:
        arguments.append(map_image("residual", core.residual, element, 2))
        added = element.widen(arguments[-1])[axes.m, axes.x]
        if core.blend:
            first, second, third = (image(name, 1) for name in ("first", "second", "third"))
            arguments += [first, second, third]
            value = added * first[axes.m] + (value * second[axes.m] + third[axes.m])
        else:
            value = value + added
    out = hl.Func("out")
    out[axes.m, axes.x] = element.narrow(activate(core.activation, value, axes.m, axes.x))
    schedule_output(axes, out, core.out_channels, tile, [], whole_tiles=True)
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, parts, tile, element)
    for func, channels in scratch:
        func.compute_root()
        schedule_copy(axes, func, channels, tile)
    bound_output(out, core.out_channels, core.out_channels, flat=True)
    return out, arguments
