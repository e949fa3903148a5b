"""Cost model of a core's ports and caches: register tiles, blocks of rows, and direct GEMM or Strassen.

What a core's work takes stands in `Cpu.speeds`, in cycles as defined there. `benchmarks/cpu_tiles.py` checks the model
against measurements.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.strassen import STRASSEN_MIN_K, partial_sum_length
from leanconv.kernels.cpu.tuning.cpu import Cpu
from leanconv.kernels.cpu.tuning.speeds import Speeds

NEUTRAL = Speeds()


def speeds_of(cpu: Cpu) -> Speeds:
    """The processor's speeds, neutral ones where none are said."""
    return NEUTRAL if cpu.speeds is None else cpu.speeds


def rate(cpu: Cpu, lanes: int) -> float:
    """Cycles of a multiply-add on vectors of so many lanes: the widest, or half of them."""
    return 1.0 if lanes == cpu.lanes else speeds_of(cpu).narrow


@functools.lru_cache(16)
def matrix_tiles(cpu: Cpu) -> tuple[Tile, ...]:
    """The register tiles of a GEMM that fit the processor's registers."""
    widest = cpu.lanes
    return tuple(
        Tile(rows, lanes * vectors, lanes)
        for lanes in {widest, max(4, widest // 2)}
        # One narrow vector per tile at most: LLVM fuses several into wide ones with shuffles, at half the speed.
        for vectors in range(1, 9 if lanes == widest else 2)
        for rows in range(1, 15)
        if rows * vectors + vectors + 1 <= cpu.registers - 1
    )


@functools.lru_cache(4096)
def matrix_tile(cpu: Cpu, width: int, pixels: int, depth: int, flat: bool, pairs: bool = False) -> Tile:
    """The register tile of fewest modelled cycles for a 1×1.

    Args:
        width, depth: output and input channels; if products take `pairs`, depth counts pairs (`ElementType.steps`).
        pixels: of a row, or of the map if all its pixels form one row (`flat`).
    """
    return min(matrix_tiles(cpu), key=lambda tile: matrix_cycles(cpu, tile, width, pixels, depth, flat, pairs))


# Sums in flight that just cover the latency do not keep a core busy, whose schedule is not perfect.
SLACK = 1.1


def matrix_cycles(cpu: Cpu, tile: Tile, width: int, pixels: int, depth: int, flat: bool, pairs: bool = False) -> float:
    """Modelled cycles of a tile for the arguments of `matrix_tile`; infinite if the kernel cannot run with it.

    A step takes its multiply-adds, its loads or the wait for the sums, whichever is longest. Each tile takes some time
    beside its steps, for its places in memory and its stores.
    """
    speeds, one = speeds_of(cpu), rate(cpu, tile.lanes)
    rows, vectors = tile.pixels, tile.block // tile.lanes
    if flat and rows > pixels:
        return math.inf
    loads = speeds.spread * rows + speeds.load * vectors
    step = max(one * rows * vectors, one * loads, SLACK * speeds.latency)
    tiles = math.ceil(pixels / rows) * math.ceil(width / tile.block)
    cycles = tiles * (depth * step + speeds.tile)
    if pairs and vectors > 3 and tile.block < width:
        cycles *= 3  # from 64 channels on LLVM shuffles the weights of each panel (measured: 128 to 128, 28×28)
    # Tie-break: half of the registers hold sums, in 2 vectors; for flattened pixels preferably in 4: fewer panels read
    # those pixels, and stores lie side by side.
    half, wide = cpu.registers // 2, flat and not pairs
    distance = abs(rows * vectors - half) / 2 + abs(vectors - 4) if wide else abs(rows - half / 2) + abs(vectors - 2)
    return cycles * (1 + 0.002 * distance + 0.004 * (tile.lanes != cpu.lanes))


@functools.lru_cache(4096)
def dividing_tile(cpu: Cpu, width: int, pixels: int, depth: int, pairs: bool, most: float) -> Tile | None:
    """The best tile whose pixels divide all `pixels` of a map; None if it takes over `most` times the best's cycles."""

    def cycles(tile: Tile) -> float:
        return matrix_cycles(cpu, tile, width, pixels, depth, True, pairs)

    fitting = [tile for tile in matrix_tiles(cpu) if pixels % tile.pixels == 0]
    best = min(fitting, key=cycles)
    return best if cycles(best) <= most * cycles(matrix_tile(cpu, width, pixels, depth, True, pairs)) else None


# Use Strassen only if the model predicts at most 95 % of the direct GEMM's cycles: it depends more on cache, and other
# processes use some of it.
MAX_STRASSEN_SHARE = 0.95
# Instructions of Strassen's sums, a store counted twice. Four vectors of the input are loaded, 5 additions make seven
# of them. Seven vectors of products are loaded, 8 additions make four outputs.
STRASSEN_SUMS = (4 + 5 + 2 * 7, 7 + 8 + 2 * 4)


def strassen_cycles(cpu: Cpu, tile: Tile, width: int, pixels: int, depth: int, blocks: int = 1) -> float:
    """Modelled cycles of a 1×1 by Strassen's algorithm, over `blocks` of so many pixels; see `matrix_cycles`."""
    speeds, rows, vectors, pairs = speeds_of(cpu), tile.pixels, tile.block // tile.lanes, -(-pixels // 2)
    if rows > pairs:
        return math.inf
    into = pairs * math.ceil(depth / 2 / tile.lanes) * STRASSEN_SUMS[0]
    out_of = math.ceil(pairs / rows) * math.ceil(width / 2 / tile.block) * rows * vectors * STRASSEN_SUMS[1]
    sums = speeds.strassen * rate(cpu, tile.lanes) * (into + out_of)
    # Weights are 7/4 as large; in a network that exceeds the cache the surplus comes from memory.
    fetched = 0.75 * 4 * width * depth / speeds.memory_bytes
    return blocks * (7 * matrix_cycles(cpu, tile, -(-width // 2), pairs, depth // 2, False) + sums) + fetched


def weight_cycles(cpu: Cpu, size: float) -> float:
    """Cycles in which so many bytes of weights are read: from the last cache, or from memory where there is none."""
    speeds = speeds_of(cpu)
    return size / (speeds.l3_bytes if cpu.l3 else speeds.memory_bytes)


def weight_reads(cpu: Cpu, size: float, blocks: int) -> float:
    """Cycles in which each of so many blocks of rows reads all weights, which have so many bytes.

    Half of the L2 cache holds a block's rows (`row_block`). Weights that fit into the other half are fetched once.
    """
    return weight_cycles(cpu, size if size <= cpu.l2 // 2 else size * blocks)


@functools.lru_cache(4096)
def strassen_tile(cpu: Cpu, width: int, pixels: int, depth: int, blocks: int = 1) -> Tile | None:
    """The register tile of a 1×1 by Strassen's algorithm, over `blocks` of so many pixels.

    None if the direct GEMM is about as fast, or if channels are odd. None, too, if half of the input channels do not
    split into equal sums of 16 to 32.
    """
    if width % 2 or depth % 2 or not STRASSEN_MIN_K <= partial_sum_length(depth // 2) < depth // 2:
        return None
    best = min(matrix_tiles(cpu), key=lambda tile: strassen_cycles(cpu, tile, width, pixels, depth))
    whole = width, blocks * pixels, depth, True
    direct = matrix_cycles(cpu, matrix_tile(cpu, *whole), *whole)
    return best if strassen_cycles(cpu, best, width, pixels, depth, blocks) < MAX_STRASSEN_SHARE * direct else None


# Reuse a compiled tile if the model rates it at most 10 % slower than the best. Measured with MobileNetV3-Small at 160
# to 320 px, prepared for 224 px: at most 2.6 % longer than if prepared for each size. The smaller sizes then need 8
# to 11 more kernels. With 1.2: up to 5.4 % longer, 3 to 6 more kernels (one Zen 4 core, `benchmarks/fused_sizes.py`).
REUSE_LIMIT = 1.1
AnyTile = TypeVar("AnyTile")


def reuse_compiled(best: AnyTile, compiled: Sequence[AnyTile], cost: Callable[[AnyTile], float]) -> AnyTile:
    """The cheapest tile `compiled` for other sizes, if it costs at most `REUSE_LIMIT` times the best; else `best`."""
    kept = min(compiled, key=cost, default=best)
    return kept if cost(kept) <= REUSE_LIMIT * cost(best) else best


@functools.lru_cache(4096)
def lanes_for(cpu: Cpu, channels: int) -> int:
    """Vector width of a kernel without a 1×1: wide or narrow, whichever wastes fewer lanes on `channels`.

    Each vector has an address to compute and a loop around it, for which narrow ones count 3 % more.
    """
    cost = {
        lanes: math.ceil(channels / lanes) * (1.0 if lanes == cpu.lanes else rate(cpu, lanes) + 0.03)
        for lanes in (max(4, cpu.lanes // 2), cpu.lanes)
    }
    return min(cost, key=lambda key: cost[key])


def fill(pixels: int) -> int:
    """Pixels of a tile: 4 to 8, whichever leaves the least of a row's last tile empty; a shorter row is one tile."""
    if pixels < 4:
        return max(1, pixels)
    return min(range(min(8, pixels), 3, -1), key=lambda rows: math.ceil(pixels / rows) * rows + 0.1 * (8 - rows))


def strip(cpu: Cpu, rows: int, width: int, tile: int) -> int:
    """Tiles of a row to compute in all rows before the next ones, for a stencil that spans `rows`; 0: whole rows.

    The rows of one vector of channels then stay in the L1 cache (5/8 of it, or strips in 3/8) until the next row reads
    them. Neighbouring channels come along: a line of the cache has 64 bytes.
    """
    if rows == 1 or rows * width * 64 <= 5 * cpu.l1 // 8:
        return 0
    return max(1, 3 * cpu.l1 // 8 // (rows * tile * 64))


# Units of an average, and so the most blocks of a map that is averaged: enough for as many threads.
UNITS = 64


def summed_rows(rows: int, least: int = 1) -> int:
    """Rows of a map that an average sums together, a multiple of `least`; blocks are made of them.

    By the map alone. If they depended on the blocks, the number of threads would change the last bit.
    """
    return max(1, math.ceil(rows / UNITS / least)) * least


def whole_units(unit: int, least: int) -> int:
    """The fewest rows that are whole units and at least `least`."""
    return math.ceil(least / unit) * unit


def row_block(cpu: Cpu, rows: int, samples: int, row_bytes: int, halo: int, threads: int, least: int = 1) -> int:
    """Rows of a block: they fill half the L2 cache, exceed the halo several times, and keep all threads busy.

    `least`: rows that are computed together; a block is a multiple of it. A remainder costs a whole tile (7 % of
    196 pixels in three blocks with tiles of 14).
    """
    block = max(least, 4 * halo, cpu.l2 // 2 // max(1, row_bytes))
    blocks = max(1, round(rows / block))
    if threads > 1:  # equally many blocks per thread
        blocks = math.ceil(blocks * samples / threads) * threads // math.gcd(samples, threads)
        blocks = max(1, math.ceil(blocks / samples))
    if not rows:
        return 1
    units = math.ceil(rows / least)
    best = math.ceil(units / blocks)
    if threads > 1 and least > 1:  # whole units divide less evenly: perhaps some more blocks do

        def load(size: int) -> int:
            return math.ceil(samples * math.ceil(units / size) / threads) * size

        best = min(range(best, max(0, best // 2 - 1), -1), key=load)
    return best * least
