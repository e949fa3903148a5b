"""Pointwise (1×1) convolution in Halide: a GEMM over all pixels of a map, any number of inputs, an optional gate.

Serves `ops/separable.py` without stencils, and the second pass of `ops/gated_sum.py` as a blend epilogue.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.pipelines.activations import activate
from leanconv.kernels.cpu.pipelines.element import BFLOAT16, FLOAT32, ElementType, image, map_image, weights_image
from leanconv.kernels.cpu.pipelines.frontend import halide
from leanconv.kernels.cpu.pipelines.gemm import (
    Axes,
    Operand,
    Tile,
    bound_output,
    initial_value,
    projection,
    schedule_copy,
    schedule_output,
    schedule_projection,
)


@dataclass(frozen=True)
class Pointwise:
    """What one kernel computes.

    Args:
        inputs: of each, its channels and the numbers from pixel to pixel.
        out_channels: O; the output is dense.
        bias: whether there is one.
        activation: the last one.
        residual: numbers from pixel to pixel of the map that is added before the activation; 0 for none.
        gate: whether each input comes with one factor per channel.
        blend: y = act(a·first + (W·x)·second + third): the map `residual` is a, with three numbers per channel.
        element: of the maps.
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

    The map and each block of it have at least `tile.pixels` pixels.
    """
    hl, axes, arguments, operands, scratch = halide(), Axes(), [], [], []
    element = core.element
    for index, (channels, pixel) in enumerate(core.inputs):
        map_ = map_image(f"in{index}", pixel, element, 2)
        weights = weights_image(f"w{index}", tile.block, channels, element)
        arguments += [map_, weights]
        source = element.widen(map_)
        # A scaled or widened copy: computed once, not again for every block of outputs.
        if core.gate or element == BFLOAT16:
            value = source[axes.c, axes.x]
            if core.gate:
                gate = image(f"gate{index}", 1)
                arguments.append(gate)
                value = value * element.quiet_nan(gate[axes.c])
            func = hl.Func(f"gated{index}")
            func[axes.c, axes.x] = element.to_scratch(value)
            scratch.append((func, channels))
            source = element.from_scratch(func)
        operands.append(Operand(source, channels, weights))
    start = initial_value(axes, core.bias, arguments)
    acc = projection(axes, operands, start, tile, element, flat=True)
    value = acc[axes.m, axes.x]
    if core.residual:
        arguments.append(map_image("residual", core.residual, element, 2))
        added = element.widen(arguments[-1])[axes.m, axes.x]
        if core.blend:
            first, second, third = (image(name, 1) for name in ("first", "second", "third"))
            arguments += [first, second, third]
            # In this order for every pixel of a tile: LLVM may choose another one for each.
            value = hl.strict_float(added * first[axes.m] + (value * second[axes.m] + third[axes.m]))
        else:
            value = value + added
    out = hl.Func("out")
    out[axes.m, axes.x] = element.narrow(activate(core.activation, value, axes.m, axes.x))
    schedule_output(axes, out, core.out_channels, tile, [], whole_tiles=True)
    # One register tile of sums at a time; the epilogue (residual or blend, activation) reads it from registers.
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, operands, tile, element)
    for func, channels in scratch:
        func.compute_root()
        schedule_copy(axes, func, channels, tile)
    bound_output(out, core.out_channels, core.out_channels, flat=True)
    return out, arguments
