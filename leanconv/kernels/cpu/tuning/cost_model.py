"""Which tile and which block of rows: a model of the core's ports and caches, checked by `benchmarks/cpu_tiles.py`."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.strassen import SHORTEST, piece_length
from leanconv.kernels.cpu.tuning.cpu import Cpu


@functools.lru_cache(16)
def matrix_tiles(cpu: Cpu) -> tuple[Tile, ...]:
    """The register tiles of a product that the processor has registers for."""
    widest = cpu.lanes
    return tuple(
        Tile(rows, lanes * vectors, lanes)
        for lanes in {widest, max(4, widest // 2)}
        # Half vectors only one at a time: LLVM pairs several of them into whole ones, and shuffles (half the speed).
        for vectors in range(1, 9 if lanes == widest else 2)
        for rows in range(1, 15)
        if rows * vectors + vectors + 1 <= cpu.registers - 1
    )


@functools.lru_cache(4096)
def matrix_tile(cpu: Cpu, width: int, pixels: int, depth: int, flat: bool, pairs: bool = False) -> Tile:
    """The register tile of a projection of `depth` channels to `width`, of rows of `pixels` (all of them if `flat`).

    The least cycles of the model: the multiply-adds or the loads of a step, whichever are more, and the tile's own end.
    Where the product takes `pairs` of channels, `depth` counts those (`Storage.steps`).
    """
    return min(matrix_tiles(cpu), key=lambda tile: matrix_cycles(cpu, tile, width, pixels, depth, flat, pairs))


def matrix_cycles(cpu: Cpu, tile: Tile, width: int, pixels: int, depth: int, flat: bool, pairs: bool = False) -> float:
    """What the model says of a tile for `matrix_tile`'s arguments; infinite where the kernel cannot run with it."""
    widest, half = cpu.lanes, cpu.half_speed
    rows, vectors = tile.pixels, tile.block // tile.lanes
    if flat and rows > pixels:
        return math.inf
    rate = 1.0 if tile.lanes == widest else 0.5 / half  # cycles per vector operation
    step = max(rows * vectors, rows + vectors, 4 / rate) * rate
    tiles = math.ceil(pixels / rows) * math.ceil(width / tile.block)
    cycles = tiles * (depth * step + 2 * rate * rows * vectors + 12)
    if pairs and vectors > 3 and tile.block < width:
        cycles *= 3  # of 64 channels and more LLVM shuffles the weights of every panel: 128 to 128 channels, 28×28
    # Of equals the one nearest to what runs fastest: 8 pixels by 2 vectors; of all pixels in a row 16 accumulators, of
    # 4 vectors if they can be: fewer panels read those pixels, and what is written lies side by side.
    wide = flat and not pairs
    from_memory = abs(rows * vectors - 16) / 2 + abs(vectors - 4) if wide else abs(rows - 8) + abs(vectors - 2)
    return cycles * (1 + 0.002 * from_memory + 0.004 * (tile.lanes != widest))


@functools.lru_cache(4096)
def whole_tile(cpu: Cpu, width: int, pixels: int, depth: int, pairs: bool, most: float) -> Tile | None:
    """As `matrix_tile`, of all pixels in a row, a tile of which the pixels are a multiple; None where it takes more
    than `most` times as long.
    """

    def cycles(tile: Tile) -> float:
        return matrix_cycles(cpu, tile, width, pixels, depth, True, pairs)

    fitting = [tile for tile in matrix_tiles(cpu) if pixels % tile.pixels == 0]
    best = min(fitting, key=cycles)
    return best if cycles(best) <= most * cycles(matrix_tile(cpu, width, pixels, depth, True, pairs)) else None


# Of the direct product's cycles, what seven products in place of eight may cost at most to be taken: they lean on the
# caches more, which a crowded machine has less of.
PAYS = 0.95
MEMORY = 12  # bytes a cycle


def strassen_cycles(cpu: Cpu, tile: Tile, width: int, pixels: int, depth: int, blocks: int = 1) -> float:
    """As `matrix_cycles`, of seven products of halves in place of the direct one (`strassen.py`), of so many blocks."""
    widest, half = cpu.lanes, cpu.half_speed
    rows, vectors, pairs = tile.pixels, tile.block // tile.lanes, -(-pixels // 2)
    if rows > pairs:
        return math.inf
    rate = 1.0 if tile.lanes == widest else 0.5 / half
    # Of the map seven vectors are written where four were read, to the second-level cache; of the products four vectors
    # take 22 additions.
    sums = pairs * math.ceil(depth / 2 / tile.lanes) * 32 * rate
    added = math.ceil(pairs / rows) * math.ceil(width / 2 / tile.block) * rows * vectors * 22 * rate
    # Weights are seven quarters as large, and come from memory in a network that does not fit the cache.
    brought = 0.75 * 4 * width * depth / MEMORY
    return blocks * (7 * matrix_cycles(cpu, tile, -(-width // 2), pairs, depth // 2, False) + sums + added) + brought


@functools.lru_cache(4096)
def strassen_tile(cpu: Cpu, width: int, pixels: int, depth: int, blocks: int = 1) -> Tile | None:
    """The register tile of seven products of halves, of so many blocks of `pixels`.

    None where the direct product is as fast, where they do not halve, or a sum is too short to be made in pieces.
    """
    if width % 2 or depth % 2 or not SHORTEST <= piece_length(depth // 2) < depth // 2:
        return None
    best = min(matrix_tiles(cpu), key=lambda tile: strassen_cycles(cpu, tile, width, pixels, depth))
    every = width, blocks * pixels, depth, True
    direct = matrix_cycles(cpu, matrix_tile(cpu, *every), *every)
    return best if strassen_cycles(cpu, best, width, pixels, depth, blocks) < PAYS * direct else None


# By how much the model may call a tile slower that is there already, before another kernel is compiled.
# MobileNetV3-Small prepared for 224 px takes at most 2.6 % longer at 160 to 320 px than prepared for each, for 8 to 11
# more kernels at the smaller ones; with 1.2 up to 5.4 %, for 3 to 6 (one Zen 4 core, `benchmarks/fused_sizes.py`).
REUSED = 1.1
Tiles = TypeVar("Tiles")


def reuse_compiled(best: Tiles, made: Sequence[Tiles], cost: Callable[[Tiles], float]) -> Tiles:
    """`best`, or of the tiles that were `made` for other sizes the best, if it costs at most `REUSED` times as much."""
    kept = min(made, key=cost, default=best)
    return kept if cost(kept) <= REUSED * cost(best) else best


@functools.lru_cache(4096)
def lanes_for(cpu: Cpu, channels: int) -> int:
    """The vectors of a kernel without a projection: those that waste few lanes."""
    widest, half = cpu.lanes, cpu.half_speed
    narrow = max(4, widest // 2)
    cost = {
        lanes: math.ceil(channels / lanes) * (1.0 if lanes == widest else 0.5 / half + 0.03)
        for lanes in (narrow, widest)
    }
    return min(cost, key=lambda key: cost[key])


def fill(pixels: int) -> int:
    """4 to 8 pixels, or all where there are fewer: the number that leaves the least of the last tile of a row empty."""
    if pixels < 4:
        return max(1, pixels)
    return min(range(min(8, pixels), 3, -1), key=lambda rows: math.ceil(pixels / rows) * rows + 0.1 * (8 - rows))


def strip(rows: int, width: int, tile: int) -> int:
    """Tiles of a row to be made in all rows of a map before the next ones; 0: whole rows, of which enough are kept.

    A stencil that spans `rows` rows of one vector of channels finds them in the first-level cache again, 32 KiB.
    """
    if rows == 1 or rows * width * 64 <= 20 << 10:
        return 0
    return max(1, (12 << 10) // (rows * tile * 64))


def row_block(cpu: Cpu, rows: int, samples: int, row_bytes: int, halo: int, threads: int, least: int = 1) -> int:
    """How many rows a block has: half the second-level cache, not so few that the halo counts, all threads busy.

    `least`: what is made at once; a block is a multiple of it, for what is left over takes as long (7 % of 196 pixels
    in three blocks by tiles of 14).
    """
    block = max(least, 4 * halo, cpu.l2 // 2 // max(1, row_bytes))
    blocks = max(1, round(rows / block))
    if threads > 1:  # as many blocks for every thread
        blocks = math.ceil(blocks * samples / threads) * threads // math.gcd(samples, threads)
        blocks = max(1, math.ceil(blocks / samples))
    return max(1, math.ceil(rows / blocks / least)) * least if rows else 1
