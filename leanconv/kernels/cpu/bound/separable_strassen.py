"""Separable convolutions whose 1×1 uses Strassen's seven products (`strassen.py`), where that pays."""

from dataclasses import replace

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import PreparedKernel
from leanconv.kernels.cpu.bound.separable_builder import KernelBuilder
from leanconv.kernels.cpu.bound.views import flat_out_view
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines import separable_strassen, strassen
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_strassen, pack_vector
from leanconv.kernels.cpu.runtime.block_loop import View, Work
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import row_block, strassen_cycles, strassen_tile

# Least number of blocks, so that threads have about as many each. How products are saved depends on the shape alone:
# any number of threads gives the same bits.
BLOCKS = 4


def pointwise(builder: KernelBuilder) -> PreparedKernel | None:
    """A 1×1 alone: pairs of pixels, half a map from each other, in a row. None where the direct GEMM is used."""
    if (tile := _tile_alone(builder)) is None:
        return None
    form, (n, o, p, q), (x,) = builder.form, builder.size, builder.inputs
    core = strassen.StrassenPointwise(
        form.middle, pixel_stride(x), o, form.bias, form.activation, builder.residual_pixel()
    )
    chain = builder.parts.chains[0]
    arguments = [_pairs(0, x, chain.first, form.middle, p * q), _products(builder, 0, form.middle, tile)]
    if form.bias:
        arguments.append(builder.add(pack_vector(builder.parts.bias, 1, o)))
    if builder.residual is not None:
        arguments.append(_pairs(builder.at_residual, builder.residual, 0, o, p * q))
    out = View(builder.pointers + len(builder.weights), _halves(o, p * q, o), 0, p * q * o, rows=True)
    pairs = p * q // 2
    row_bytes = 4 * strassen.PRODUCTS * form.middle // 2
    block = row_block(builder.cpu, pairs, n, row_bytes, 0, torch.get_num_threads(), tile.pixels)
    work = Work(n, pairs, block, tile.pixels)
    prepared = builder.finish(
        [(kernel(strassen.pipeline, core, tile), [*arguments, out])], work, flat=False, apart=True
    )
    prepared.method = "strassen"
    return prepared


def _tile_alone(builder: KernelBuilder) -> Tile | None:
    """The register tile if a 1×1 alone uses Strassen, else None.

    With an odd number of pixels the middle one would be computed twice, in an order that only one thread keeps.
    """
    _, o, p, q = builder.size
    plain = not (builder.element.dtype != torch.float32 or builder.form.gate or len(builder.parts.chains) > 1)
    if not plain or builder.bound.target.arithmetic == "direct" or p * q % 2:
        return None
    return builder.bound.strassen_tile(o, p * q, builder.form.middle)


def projected(builder: KernelBuilder) -> PreparedKernel | None:
    """A stencil, then the 1×1 of blocks of whole rows, all alike. None where the direct GEMM is used."""
    core, form, (n, o, p, q) = builder.core(), builder.form, builder.size
    rows = _rows(builder) if separable_strassen.supports(core) and builder.bound.target.arithmetic != "direct" else None
    if rows is None:
        return None
    pixels = rows * q
    best = strassen_tile(builder.cpu, o, pixels, form.middle, p // rows)
    assert best is not None
    tile = builder.bound.tile(
        ("strassen", core), best, lambda tile: strassen_cycles(builder.cpu, tile, o, pixels, form.middle)
    )
    arguments: list[View] = []
    for chain, taps, column in zip(builder.parts.chains, builder.parts.taps, builder.columns(), strict=True):
        arguments += [builder.input(chain), *map(builder.add, taps), _products(builder, column, chain.channels, tile)]
    if form.bias:
        arguments.append(builder.add(pack_vector(builder.parts.bias, 1, o)))
    if builder.residual is not None:
        arguments.append(replace(_pairs(builder.at_residual, builder.residual, 0, o, pixels), moved=True))
    out = builder.pointers + len(builder.weights)
    target = View(out, _halves(o, pixels, o), 0, p * q * o, moved=True)
    arguments = [flat_out_view(out, builder.size, builder.element), *arguments, target]
    listed = [(kernel(separable_strassen.projected, core, tile), arguments)]
    prepared = builder.finish(listed, Work(n, p * q, pixels), flat=True, fetches=builder.fetches(core), unit=rows)
    prepared.method = "strassen"
    return prepared


def _rows(builder: KernelBuilder) -> int | None:
    """Rows of a block: they divide the map, and there are at least `BLOCKS`.

    The best whose sums fit a quarter of the cache, else half of it, in at least two tiles. At 512 to 512 channels,
    14×14, blocks of 2 rows take 1 % less than blocks of 7, although weights pass more often, and 2 % less than of 1.
    """
    (n, o, p, q), depth = builder.size, builder.form.middle
    fitting = builder.cpu.l2 // 4 // (strassen.PRODUCTS * depth * q)
    costs: dict[int, tuple[bool, float]] = {}
    for rows in range(min(p, 2 * fitting), 0, -1):
        alike = p % rows == 0 and n * (p // rows) >= BLOCKS
        tile = strassen_tile(builder.cpu, o, rows * q, depth, p // rows) if alike else None
        if tile is not None and rows * q >= 4 * tile.pixels:
            costs[rows] = rows > fitting, strassen_cycles(builder.cpu, tile, o, rows * q, depth, p // rows)
    return min(costs, key=lambda rows: costs[rows], default=None)


def _products(builder: KernelBuilder, column: int, channels: int, tile: Tile) -> View:
    """The packed factors of a chain's part of the 1×1."""
    assert builder.parts.project is not None
    return builder.add(pack_strassen(builder.parts.project[:, column : column + channels], tile.block))


def _pairs(pointer: int, x: Tensor, first: int, channels: int, pixels: int) -> View:
    """Channels of a map as `c i j x`: halves i of the channels, halves j of the pixels (or of each block of `pixels`).

    If the number of pixels is odd, both halves contain the middle one.
    """
    return View(pointer, _halves(channels, pixels, pixel_stride(x)), first, x.stride(0) if x.shape[0] > 1 else 0)


def _halves(channels: int, pixels: int, pixel: int) -> tuple[tuple[int, int], ...]:
    return (channels // 2, 1), (2, channels // 2), (2, pixels // 2 * pixel), (-(-pixels // 2), pixel)
