"""The cost model: the best tile for one size, a compiled one for others."""

import math
from dataclasses import replace

import pytest
import torch

from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.tuning.cost_model import (
    REUSE_LIMIT,
    lanes_for,
    matrix_cycles,
    matrix_tile,
    matrix_tiles,
    rate,
    reuse_compiled,
    row_block,
    speeds_of,
    strassen_tile,
    weight_cycles,
    weight_reads,
)
from leanconv.kernels.cpu.tuning.speeds import Speeds
from leanconv.ops.grouped import Grouped
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable, Stencil
from leanconv.ops.separable import separable as reference
from tests.cpus import CPUS, HASWELL, NEOVERSE, SAPPHIRE_RAPIDS, ZEN4

pytestmark = pytest.mark.usefixtures("halide")
AROUND = (1, 1, 1, 1)


def test_the_best_tile_is_the_one_of_least_cycles(cpu):
    best = matrix_tile(cpu, 64, 196, 32, True)
    cycles = matrix_cycles(cpu, best, 64, 196, 32, True)
    assert best in matrix_tiles(cpu)
    assert all(matrix_cycles(cpu, tile, 64, 196, 32, True) >= cycles for tile in matrix_tiles(cpu))
    assert matrix_cycles(cpu, Tile(8, 16, 16), 64, 7, 32, True) == math.inf  # more pixels than the map has


def test_tiles_fit_the_registers(cpu):
    """Accumulators, one register of weights per vector, one for a pixel, and one to spare."""
    for tile in matrix_tiles(cpu):
        vectors = tile.block // tile.lanes
        assert tile.pixels * vectors + vectors + 1 < cpu.registers
        assert tile.lanes <= cpu.lanes


@pytest.mark.parametrize("cpu", [ZEN4, SAPPHIRE_RAPIDS], ids=["zen4", "sapphire rapids"])
def test_which_of_equal_tiles(cpu):
    """With AVX-512: 4 vectors for flattened pixels, else 2. With pairs, 4 are slow in more than one panel."""
    wide, narrow = Tile(4, 64, 16), Tile(8, 32, 16)

    def slower(*sizes):
        return matrix_cycles(cpu, wide, *sizes) / matrix_cycles(cpu, narrow, *sizes)

    assert 0.95 < slower(128, 64, 32, True) < 1
    assert 1 < slower(128, 64, 32, False) < 1.05
    assert 1 < slower(64, 64, 32, True, True) < 1.05
    assert slower(128, 64, 32, True, True) > 2


def test_a_compiled_tile_is_reused_if_it_costs_little_more():
    cost = {
        "best": 10.0,
        "near": 10.0 * REUSE_LIMIT,
        "far": 10.0 * REUSE_LIMIT + 0.1,
        "impossible": math.inf,
    }.__getitem__
    assert reuse_compiled("best", [], cost) == "best"
    assert reuse_compiled("best", ["far", "near", "impossible"], cost) == "near"
    assert reuse_compiled("best", ["far", "impossible"], cost) == "best"


def test_half_vectors_take_what_the_processor_says():
    assert [rate(cpu, cpu.lanes // 2) for cpu in (ZEN4, SAPPHIRE_RAPIDS, HASWELL)] == [0.5, 1.0, 1.0]
    assert [rate(cpu, cpu.lanes) for cpu in CPUS.values()] == [1.0] * len(CPUS)
    assert speeds_of(replace(ZEN4, speeds=None)) == Speeds()


def test_speeds_decide():
    """Twice the price of a tile's stores makes tiles deeper in no case; costly sums end Strassen and Winograd."""
    sizes = 512, 196, 512
    assert strassen_tile(ZEN4, *sizes) is not None
    assert strassen_tile(replace(ZEN4, speeds=replace(ZEN4.speeds, strassen=6.0)), *sizes) is None
    slow = replace(ZEN4, speeds=replace(ZEN4.speeds, latency=24.0))
    tile, patient = matrix_tile(slow, 64, 196, 64, True), matrix_tile(ZEN4, 64, 196, 64, True)
    assert tile.pixels * tile.block > patient.pixels * patient.block  # more sums in flight
    assert weight_cycles(ZEN4, 160) == 10
    assert weight_cycles(NEOVERSE, 160) == 160 / NEOVERSE.speeds.memory_bytes  # it has no third level


def test_weights_that_stay_in_the_l2_cache_are_read_once(cpu):
    half = cpu.l2 // 2
    assert weight_reads(cpu, half, 5) == weight_cycles(cpu, half)
    assert weight_reads(cpu, half + 4, 5) == weight_cycles(cpu, 5 * (half + 4))


def test_narrow_vectors_if_they_cost_nothing():
    """24 channels: wide vectors would waste a fourth. Zen 4 runs narrow vectors at full speed; others at half."""
    assert (lanes_for(ZEN4, 24), lanes_for(SAPPHIRE_RAPIDS, 24)) == (8, 16)
    assert (lanes_for(HASWELL, 24), lanes_for(NEOVERSE, 24)) == (8, 4)


def test_blocks_are_whole_tiles(cpu):
    """Rows that fill 1.2 times half the cache are one block; 2.4 times are two blocks of whole tiles."""
    half = cpu.l2 // 2
    assert row_block(cpu, 196, 1, half // 160, 0, 1, 14) == 196
    assert row_block(cpu, 196, 1, half // 80, 0, 1, 14) == 98
    assert row_block(cpu, 196, 1, half // 60, 0, 1, 14) == 70
    assert row_block(cpu, 7, 1, 4, 0, 1, 14) == 14
    assert row_block(cpu, 196, 1, half // 160, 0, 2, 14) == 98
    assert row_block(cpu, 56, 1, half // 20, 2, 1) == 19
    assert row_block(cpu, 0, 1, 4, 0, 1) == 1


@pytest.mark.slow
@torch.no_grad()
def test_other_sizes_compile_few_kernels():
    stage = (Stencil(0, 24, (3, 3), padding=AROUND),)
    forms = [
        (Separable((24,), (stage,), 40), [torch.randn(24, 1, 3, 3), torch.randn(40, 24)]),
        (Separable((24,), (), 40), [torch.randn(40, 24)]),
        (Separable((24,), (stage,)), [torch.randn(24, 1, 3, 3)]),
        (Grouped((24,), 16, (3, 3), padding=AROUND, groups=2), [torch.randn(16, 12, 3, 3)]),
        (MaxPool(24), []),
    ]
    for form, weights in forms:
        call, before = bind(form, weights), build._kernel.cache_info().misses
        for h, w in (
            (16, 16),
            (14, 14),
            (12, 12),
            (20, 24),
            (32, 32),
            (28, 30),
            (24, 10),
            (40, 40),
            (48, 17),
            (18, 18),
        ):
            if isinstance(form, Grouped) and w <= 14:
                continue  # a kernel whose tile is a whole row is compiled for that width
            x = torch.randn(1, 24, h, w)
            y = call(x if isinstance(form, MaxPool) else [x])[0]
            if isinstance(form, Separable):
                torch.testing.assert_close(y, reference([x], weights, form)[0], rtol=1e-4, atol=1e-4)
        made = build._kernel.cache_info().misses - before
        assert made <= 4, f"{made} kernels for {form}"
