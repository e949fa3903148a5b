"""1×1 convolutions in Halide: all pixels of a map in a row, any number of inputs, with or without a gate.

Serves `ops/separable.py` where there is no stencil, and the second pass of `ops/gated_sum.py`.
"""

from dataclasses import dataclass
from typing import Any

from leanconv.kernels.cpu.activations import activate
from leanconv.kernels.cpu.frontend import halide
from leanconv.kernels.cpu.pieces import (
    Axes,
    Tile,
    bound_output,
    image,
    map_image,
    projection,
    schedule_copy,
    schedule_output,
    schedule_projection,
    weights_image,
)  # fmt: skip


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
        blend: y = act(a·first + (W·x)·second + third) with the map `residual` as a, and three numbers per channel.
    """

    inputs: tuple[tuple[int, int], ...]
    out_channels: int
    bias: bool = False
    activation: str = "none"
    residual: int = 0
    gate: bool = False
    blend: bool = False


def pipeline(core: Pointwise, tile: Tile) -> tuple[Any, list[Any]]:
    """The kernel and its arguments: per input its map `c x`, packed 1×1 and gate; bias; residual; first second third.

    There must be at least `tile.pixels` pixels, in the map and in each block of them.
    """
    hl, axes, arguments, parts, gated = halide(), Axes(), [], [], []
    for index, (channels, pixel) in enumerate(core.inputs):
        source, weights = map_image(f"in{index}", pixel, 2), weights_image(f"w{index}", tile.block, channels)
        arguments += [source, weights]
        if core.gate:
            gate = image(f"gate{index}", 1)
            arguments.append(gate)
            func = hl.Func(f"gated{index}")
            func[axes.c, axes.x] = source[axes.c, axes.x] * gate[axes.c]
            gated.append((func, channels))
            source = func
        parts.append((source, channels, weights))
    start: Any = hl.f32(0.0)
    if core.bias:
        arguments.append(image("bias", 1))
        start = arguments[-1][axes.m]
    acc = projection(axes, parts, start, tile, flat=True)
    value = acc[axes.m, axes.x]
    if core.residual:
        residual = map_image("residual", core.residual, 2)
        arguments.append(residual)
        added = residual[axes.m, axes.x]
        if core.blend:
            first, second, third = (image(name, 1) for name in ("first", "second", "third"))
            arguments += [first, second, third]
            value = added * first[axes.m] + (value * second[axes.m] + third[axes.m])
        else:
            value = value + added
    out = hl.Func("out")
    out[axes.m, axes.x] = activate(core.activation, value, axes.m, axes.x)
    schedule_output(axes, out, core.out_channels, tile, [], whole_tiles=True)
    acc.compute_at(out, axes.xo)
    schedule_projection(axes, acc, len(parts), tile)
    for func, channels in gated:
        func.compute_root()
        schedule_copy(axes, func, channels, tile)
    bound_output(out, core.out_channels, core.out_channels, flat=True)
    return out, arguments
