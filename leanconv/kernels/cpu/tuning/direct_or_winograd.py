"""Direct or Winograd: the algorithm, tiles and blocks of rows of a group convolution, by modelled cycles."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from leanconv.kernels.cpu.pipelines import grouped, packing, winograd
from leanconv.kernels.cpu.pipelines.element import FLOAT32
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.grouped import GroupedTiles
from leanconv.kernels.cpu.pipelines.padded import GroupedCore
from leanconv.kernels.cpu.tuning.cost_model import (
    matrix_cycles,
    matrix_tile,
    rate,
    row_block,
    speeds_of,
    summed_rows,
    weight_cycles,
    weight_reads,
)
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.kernels.cpu.tuning.target import Target
from leanconv.ops.forms import Pair
from leanconv.ops.grouped import Grouped

Choose = Callable[[Any, GroupedTiles, Callable[[GroupedTiles], float]], GroupedTiles]  # `Bound.tile`

# Instructions of Winograd's transforms for a vector of channels of a 2×2 output, a store counted twice. Into: 16 loads,
# 32 additions, 16 stores; out of: 16 loads, 24 additions, 4 stores.
TRANSFORMS = (16 + 32 + 2 * 16, 16 + 24 + 2 * 4)
# Winograd's weights are large, and each block of rows reads all of them. Blocks may be so many times as large as half
# the L2 cache holds, if the model predicts at most this share of the cycles. On a busy Zen 3 core (512 KiB of L2) group
# sums of 512 channels then take 1.02 to 1.31 times less: 7×7 1.82 and 1.56 ms, 14×14 4.63 and 3.67 ms. On a Zen 4 core
# (1 MiB) dense ones of 512 and 1,024 channels take 1.03 times less, group sums of 256 and 512 .97 to 1.00 times; those
# of 128 channels, whose weights stay in the L2 cache, lost 4 and 5 % by it.
LARGER, WORTH = (2, 4, 8), 0.9


@dataclass(frozen=True)
class Algorithm:
    """How a map is computed: the method, its tiles, rows per block, and modelled cycles per sample.

    `unit`: rows that an average sums together.
    """

    method: str
    tiles: GroupedTiles
    block: int
    cycles: float
    unit: int = 1


def choose_direct_or_winograd(
    target: Target, core: GroupedCore, samples: int, size: Pair, choose: Choose, method: str | None
) -> Algorithm:
    """The algorithm of fewest cycles, or that of the `method` asked for.

    A dense convolution stays direct by default ("lean"): only the group sums of this project's operators save products.
    """
    lean = core.form.groups > 1 or core.form.pointwise
    allowed = can_winograd(core) and target.arithmetic in (("lean", "fewest") if lean else ("fewest",))
    algorithms = [direct_algorithm, winograd_algorithm] if allowed else [direct_algorithm]
    if method is not None:
        algorithms = [{"direct": direct_algorithm, "winograd": winograd_algorithm}[method]]
    # Compared with the model's best tiles; only the winner asks `choose`, which remembers what is compiled. For one
    # thread: any number of threads then gives the same bits.
    cpu = target.cpu
    best = min(
        algorithms, key=lambda algorithm: algorithm(cpu, core, samples, size, lambda _, tiles, __: tiles, 1).cycles
    )
    return best(cpu, core, samples, size, choose, torch.get_num_threads())


def can_winograd(core: GroupedCore) -> bool:
    """Whether F(2×2, 3×3) applies: a 3×3 of stride and dilation 1, float32, an input that is no image in planes."""
    plain = core.form.kernel == (3, 3) and core.form.stride == core.form.dilation == (1, 1)
    return plain and core.element == FLOAT32 and bool(core.pixels)


def direct_algorithm(cpu: Cpu, core: GroupedCore, samples: int, size: Pair, choose: Choose, threads: int) -> Algorithm:
    """The direct sum."""
    form, element, (p, q) = core.form, core.element, size
    c, taps = sum(form.channels), form.kernel[0] * form.kernel[1]
    depth = c // form.groups * taps + c * form.pointwise
    each, steps = form.out_channels // form.groups, core.product.steps(depth)
    first = each, q, steps, False

    def cycles(tiles: GroupedTiles) -> float:
        after = 0.0 if form.project is None else matrix_cycles(cpu, tiles.outer, *_projection(core, q))
        return form.groups * matrix_cycles(cpu, tiles.inner, *first) + after

    tile = matrix_tile(cpu, *first)
    best = GroupedTiles(tile, tile if form.project is None else matrix_tile(cpu, *_projection(core, q)))
    tiles = choose(("direct", core), best, cycles)
    inner = 0 if form.project is None else form.out_channels
    row_bytes = element.bytes * q * (c * form.stride[0] * form.stride[1] + inner + form.width)
    unit = summed_rows(p) if form.average else 1
    block = row_block(cpu, p, samples, row_bytes, (form.kernel[0] - 1) * form.dilation[0], threads, unit)
    products = form.groups * p * matrix_cycles(cpu, tiles.inner, *first)
    read = weight_reads(cpu, element.bytes * form.out_channels * depth, math.ceil(p / block))
    return Algorithm("direct", tiles, block, products + read, unit)


def _projection(core: GroupedCore, q: int) -> tuple[int, int, int, bool]:
    """The arguments of `matrix_tile` for the 1×1 that follows, on a row of q pixels."""
    return core.form.project or 0, q, core.element.steps(core.form.out_channels), False


def winograd_algorithm(
    cpu: Cpu, core: GroupedCore, samples: int, size: Pair, choose: Choose, threads: int
) -> Algorithm:
    """Winograd F(2×2, 3×3)."""
    form, (p, q) = core.form, size
    c, each, across = sum(form.channels), form.out_channels // form.groups, math.ceil(q / 2)
    inner = 0 if form.project is None else form.out_channels
    own = matrix_tile(cpu, each, across, c // form.groups, False)
    l1_fused = winograd.fits_l1(form, own, cpu.l1)
    kept = sum(len(part.places) * (c if part.at_once(form) else part.depth(form)) for part in winograd.parts_of(form))
    weights = 4 * form.out_channels * sum(len(part.places) * part.depth(form) for part in winograd.parts_of(form))
    scratch = 0 if l1_fused else across * (kept + 16 * min(each, 32)) // 2
    row_bytes = 4 * (q * (c + inner + form.width) + scratch)
    unit = summed_rows(p, 2) if form.average else 2

    def blocked(more: int) -> tuple[float, Tile, int]:
        """Cycles, tile and 2×2 outputs down of one thread's blocks that are `more` times as large."""
        rows = min(row_block(cpu, p, samples, row_bytes // more, 1, 1, unit), p)
        down = math.ceil(rows / 2)
        tile = own if l1_fused else matrix_tile(cpu, each, across * down, c // form.groups, False)
        one, blocks = _winograd_cycles(cpu, form, GroupedTiles(tile, tile, l1_fused), across, down), math.ceil(p / rows)
        return blocks * one + weight_reads(cpu, weights, blocks), tile, down

    # The tile is that of one thread's blocks: any number of threads then runs the same code.
    most = 1
    for more in () if l1_fused else LARGER:
        if blocked(more)[0] < WORTH * blocked(most)[0]:
            most = more
    _, tile, down = blocked(most)
    block = row_block(cpu, p, samples, row_bytes // most, 1, threads, unit)

    def cycles(tiles: GroupedTiles) -> float:
        after = 0.0 if form.project is None else block * matrix_cycles(cpu, tiles.outer, *_projection(core, q))
        return _winograd_cycles(cpu, form, tiles, across, down) + after

    outer = tile if form.project is None else matrix_tile(cpu, *_projection(core, q))
    tiles = choose(("winograd", core), GroupedTiles(tile, outer, l1_fused), cycles)
    blocks = math.ceil(p / block)
    cost = blocks * _winograd_cycles(cpu, form, tiles, across, down) + weight_reads(cpu, weights, blocks)
    return Algorithm("winograd", tiles, block, cost, unit)


def _winograd_cycles(cpu: Cpu, form: Grouped, tiles: GroupedTiles, across: int, down: int) -> float:
    """Cycles of one block of `across` × `down` 2×2 outputs: products and transforms, without reading weights."""
    c, each, cycles, tile = sum(form.channels), form.out_channels // form.groups, 0.0, tiles.inner
    rows, columns = (down, across) if tiles.l1_fused else (1, across * down)
    each_takes = speeds_of(cpu).l1_winograd if tiles.l1_fused else speeds_of(cpu).winograd
    into, out_of = (each_takes * rate(cpu, tile.lanes) * count for count in TRANSFORMS)
    for part in winograd.parts_of(form):
        depth, n = part.depth(form), len(part.places)
        cycles += n * form.groups * rows * matrix_cycles(cpu, tile, each, columns, depth, False)
        wide = c if part.at_once(form) and not tiles.l1_fused else c // form.groups
        cycles += c / wide * math.ceil(wide / tile.lanes) * across * down * into * n / 16
    # Every panel of outputs reads the transformed input; from the last cache, where it does not stay in the L2 cache.
    read = 4 * across * down * sum(len(part.places) * part.depth(form) for part in winograd.parts_of(form))
    if not tiles.l1_fused and read > cpu.l2:
        cycles += form.groups * math.ceil(each / tile.block) * weight_cycles(cpu, read)
    return cycles + form.groups * math.ceil(each / tile.lanes) * across * down * out_of


PIPELINES = {"direct": grouped.pipeline, "winograd": winograd.pipeline}
PACKERS = {"direct": packing.pack_direct, "winograd": packing.pack_winograd}
