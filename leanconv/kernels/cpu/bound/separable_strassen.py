"""Separable convolutions whose 1×1 is made by seven products of halves (`strassen.py`), where that pays."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leanconv.kernels.cpu.bound.base import Step, flat_out_view
from leanconv.kernels.cpu.compilation.build import kernel
from leanconv.kernels.cpu.pipelines import separable_strassen, strassen
from leanconv.kernels.cpu.pipelines.element import FLOAT32
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_strassen, pack_vector
from leanconv.kernels.cpu.runtime.launch import View, Work
from leanconv.kernels.cpu.runtime.tensors import pixel_stride
from leanconv.kernels.cpu.tuning.cost_model import arithmetic, row_block, strassen_cycles, strassen_tile

if TYPE_CHECKING:
    from leanconv.kernels.cpu.bound.separable import StepBuilder

# Channels behind a stencil, at the least. Of 256 (to 256, 32×32; to 512, 28×28) the sums of the products take what is
# saved: between 3 % faster and 3 % slower, on a Zen 4 core.
DEPTH = 384


def pointwise(made: StepBuilder) -> Step | None:
    """A 1×1 alone: pairs of pixels, half a map from each other, in a row. None where the direct product is taken."""
    if (tile := _tile_alone(made)) is None:
        return None
    form, (n, o, p, q), (x,) = made.form, made.size, made.inputs
    core = strassen.StrassenPointwise(
        form.middle, pixel_stride(x), o, form.bias, form.activation, made.residual_pixel()
    )
    source = made.bound.tracks[0]
    arguments = [_pairs(0, x, source.first, form.middle, p * q), _products(made, 0, form.middle, tile)]
    if form.bias:
        arguments.append(made.add(pack_vector(made.bound.bias, 1, o)))
    if made.residual is not None:
        arguments.append(_pairs(made.at_residual, made.residual, 0, o, p * q))
    out = View(made.pointers + len(made.weights), _halves(o, p * q, o), 0, p * q * o, rows=True)
    pairs = -(-p * q // 2)
    row_bytes = 4 * strassen.PRODUCTS * form.middle // 2
    block = pairs if p * q % 2 else row_block(made.cpu, pairs, n, row_bytes, 0, torch.get_num_threads(), tile.pixels)
    work = Work(n, pairs, block, tile.pixels)
    step = made.finish([(kernel(strassen.pipeline, core, tile), [*arguments, out])], work, flat=False, apart=True)
    step.method = "strassen"
    return step


def _tile_alone(made: StepBuilder) -> Tile | None:
    """Of an odd number of pixels the middle one is made twice, in an order that only one thread keeps."""
    (n, o, p, q), threads = made.size, torch.get_num_threads()
    plain = not (made.element != FLOAT32 or made.form.gate or len(made.bound.tracks) > 1)
    if not plain or arithmetic() == "direct" or (p * q % 2 and threads > n):
        return None
    return made.bound.strassen_tile(o, p * q, made.form.middle)


def projected(made: StepBuilder) -> Step | None:
    """A stencil, then the 1×1 of blocks of whole rows, all alike. None where the direct product is taken."""
    core, form, (n, o, p, q) = made.core(), made.form, made.size
    rows = _rows(made) if separable_strassen.supports(core) and arithmetic() != "direct" else None
    if rows is None:
        return None
    pixels = rows * q
    best = strassen_tile(made.cpu, o, pixels, form.middle, p // rows)
    assert best is not None
    tile = made.bound.tile(
        ("strassen", core), best, lambda tile: strassen_cycles(made.cpu, tile, o, pixels, form.middle)
    )
    arguments: list[View] = []
    for source, taps, column in zip(made.bound.tracks, made.bound.taps, made.columns(), strict=True):
        arguments += [made.input(source), *map(made.add, taps), _products(made, column, source.channels, tile)]
    if form.bias:
        arguments.append(made.add(pack_vector(made.bound.bias, 1, o)))
    if made.residual is not None:
        arguments.append(replace(_pairs(made.at_residual, made.residual, 0, o, pixels), moved=True))
    out = made.pointers + len(made.weights)
    target = View(out, _halves(o, pixels, o), 0, p * q * o, moved=True)
    arguments = [flat_out_view(out, made.size, made.element), *arguments, target]
    listed = [(kernel(separable_strassen.projected, core, tile), arguments)]
    step = made.finish(listed, Work(n, p * q, pixels), flat=True, fetches=made.fetches(core))
    step.method = "strassen"
    return step


def _rows(made: StepBuilder) -> int | None:
    """How many rows a block has, of those that leave no smaller block and for every thread as many of them.

    The best whose sums fit a quarter of the cache, else half of it, in two tiles at the least. Of 512 to 512 channels,
    14×14, blocks of 2 rows take 1 % less than such of 7, although weights pass more often, and 2 % less than such of 1.
    """
    (n, o, p, q), depth = made.size, made.form.middle
    fitting = made.cpu.l2 // 4 // (strassen.PRODUCTS * depth * q) if depth >= DEPTH else 0
    costs: dict[int, tuple[bool, float]] = {}
    for rows in range(min(p, 2 * fitting), 0, -1):
        alike = p % rows == 0 and n * (p // rows) % torch.get_num_threads() == 0
        tile = strassen_tile(made.cpu, o, rows * q, depth, p // rows) if alike else None
        if tile is not None and rows * q >= 4 * tile.pixels:
            costs[rows] = rows > fitting, strassen_cycles(made.cpu, tile, o, rows * q, depth, p // rows)
    return min(costs, key=lambda rows: costs[rows], default=None)


def _products(made: StepBuilder, column: int, channels: int, tile: Tile) -> View:
    """The packed factors of a track's part of the 1×1."""
    assert made.bound.project is not None
    return made.add(pack_strassen(made.bound.project[:, column : column + channels], tile.block))


def _pairs(pointer: int, x: Tensor, first: int, channels: int, pixels: int) -> View:
    """Channels of a map as `c i j x`: halves i of the channels, j of the pixels, or of each block of so many. Of an odd
    number of pixels both halves have the middle one.
    """
    return View(pointer, _halves(channels, pixels, pixel_stride(x)), first, x.stride(0) if x.shape[0] > 1 else 0)


def _halves(channels: int, pixels: int, pixel: int) -> tuple[tuple[int, int], ...]:
    return (channels // 2, 1), (2, channels // 2), (2, pixels // 2 * pixel), (-(-pixels // 2), pixel)
