"""Products of 8-bit integers on tiles: the emulation against TDPBUSD's definition, the primitives' bits, AMX compiled.

The emulation and AMX are one source, but for their registers. Here the emulation runs, and AMX where it is.
"""

import ctypes
import itertools
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from leanconv.kernels import Target, backend, this_cpu
from leanconv.kernels.cpu.bound.int8_plan import tile_depth
from leanconv.kernels.cpu.bound.quantized import bind_quantized_to_tiles
from leanconv.kernels.cpu.compilation.build import RUNTIME, compiler
from leanconv.kernels.cpu.runtime import int8_abi
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.integer_reference import primitive
from leanconv.ops.pool import MaxPool
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample
from tests.cpus import HASWELL, SAPPHIRE_RAPIDS, ZEN4
from tests.kernels.quantized_cases import (
    FEW,
    assert_same_bits,
    byte_map,
    check,
    grouped_forms,
    maps_of,
    quantized_form,
    separables,
    stencil,
    weights_of,
)
from tests.kernels.runtime.amx import machine_code, skip_without_amx
from tests.kernels.runtime.test_out_of_bounds import Fence

pytestmark = pytest.mark.skipif(not compiler(), reason="no C compiler")
HERE = this_cpu()
TARGET = Target(HERE if HERE.amx else replace(SAPPHIRE_RAPIDS, l2=HERE.l2, lanes=HERE.lanes))


def bind(form, weights):
    """On tiles, and on vectors where a form multiplies nothing."""
    found = bind_quantized_to_tiles(form, weights, TARGET)
    return found or backend().bind(form, weights)


@pytest.fixture
def products(monkeypatch):
    """The arithmetic of every product that is prepared."""
    found, inner = [], int8_abi.Product

    def made(*fields):
        product = inner(*fields)
        found.append(int8_abi.ARITHMETICS[product.arithmetic])
        return product

    monkeypatch.setattr(int8_abi, "Product", made)
    return found


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 67), (13, 16)])
@pytest.mark.parametrize(("c", "o"), [(5, 3), (16, 32), (24, 40), (64, 64), (72, 100)])
def test_separable(c, o, size, products):
    for seed, form in enumerate(separables(c, o).values()):
        check(form, size, seed, bind=bind)
    assert set(products) - {"vectors"} == ({int8_abi.on_tiles(TARGET.cpu)} if c > 5 else set(products) - {"vectors"})


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 67), (13, 16)])
@pytest.mark.parametrize(("c", "o"), [(3, 5), (8, 16), (20, 33)])
def test_grouped(c, o, size, products):
    for seed, form in enumerate(grouped_forms(c, o).values()):
        check(form, size, seed, bind=bind)
    assert int8_abi.on_tiles(TARGET.cpu) in products


@pytest.mark.parametrize(("c", "o"), [(12, 3), (16, 32), (72, 100)])
def test_gated_sum_and_upsample(c, o):
    for size, affine, activation in itertools.product([(2, 3), (7, 33)], (False, True), ("none", "relu", "silu")):
        check(GatedSum((c, 4 * c), o, True, affine, activation, average=True), size, bind=bind)
    for size in [(1, 1), (5, 34)]:
        check(Upsample((c, 16), o, 2, True, "relu", average=True), size, bind=bind)
        check(Upsample((c,), o, 3), size, bind=bind)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu"])
def test_activations_and_float_output(activation):
    for seed, (residual, wide) in enumerate(itertools.product((False, True), (False, True))):
        form = Separable((32,), (), 1 if wide else 19, True, activation=activation, residual=residual)
        for size in [(1, 1), (3, 17), (1, 48)]:
            check(form, size, seed, float_output=wide, bind=bind)
            check(form, size, seed, float_output=not wide, bind=bind)


def test_random_forms():
    draw = np.random.default_rng(11).integers
    for seed in range(60):
        c, o, h, w = 4 * int(draw(4, 40)), int(draw(1, 150)), int(draw(1, 12)), int(draw(1, 90))
        size, each = 2 * int(draw(0, 3)) + 1, int(draw(0, 3))
        padding = (size // 2,) * 4
        form = [
            Separable((c, 4 * each + 4), (), o, True, "relu", residual=bool(draw(2))),
            Separable((c,), (stencil(c, (size, size), padding=padding),), o),
            Grouped((c,), o, (size, size), (1 + int(draw(2)),) * 2, padding=padding, activation="relu6"),
        ][each]
        check(form, (h, w), seed, n=1, bind=bind)


@pytest.mark.parametrize("name", FEW)
def test_more_threads_and_many_blocks(name, two_threads):
    """A map of many blocks of rows, on one and on two threads, call after call: the bits of the vectors."""
    generator = torch.Generator().manual_seed(2)
    quantized = quantized_form(FEW[name], generator)
    maps, averages = maps_of(quantized, 3, (61, 83), generator)
    weights = weights_of(FEW[name], generator)
    small = replace(TARGET, cpu=replace(TARGET.cpu, l2=16 << 10))
    bound = bind_quantized_to_tiles(quantized, weights, small) or backend().bind(quantized, weights, small)
    wanted = primitive(quantized, maps, weights, averages)
    for run in (bound.run, lambda *given: two_threads(bound.run, *given)) * 2:
        for made, right in zip(run(maps, averages), wanted, strict=True):
            assert torch.equal(made, right)


@pytest.mark.parametrize("bytes_are", ["low", "high", "random"])
def test_largest_sums(bytes_are):
    """Bytes of 0 and 255 under weights of 127 and -127: no product and no pair of products saturates on the way."""
    generator = torch.Generator().manual_seed(3)
    form = quantized_form(Separable((256,), (), 24), generator)
    for sign in (1, -1):
        weights = weights_of(form.form, generator)
        weights[0] = torch.full_like(weights[0], 127 * sign)
        weights[1] = weights[1] / 40
        maps, _ = maps_of(form, 1, (3, 19), generator, bytes_are)
        assert_same_bits(form, weights, maps, bind=bind)


@pytest.mark.parametrize(("c", "o"), [(16, 32), (24, 40), (128, 70)])
@pytest.mark.parametrize("size", [(3, 5), (2, 67), (1, 18)])
def test_nothing_beside_the_maps_is_touched(c, o, size):
    fence = Fence()
    every = separables(c, o) | grouped_forms(c // 4, o) | {"gated sum": GatedSum((c, 4), o, True, True, average=True)}
    for seed, (name, form) in enumerate(every.items()):
        generator = torch.Generator().manual_seed(seed)
        quantized = quantized_form(form, generator)
        weights = weights_of(form, generator)
        if min(form.size(*size)) < 1 or (bound := bind_quantized_to_tiles(quantized, weights, TARGET)) is None:
            continue
        maps, averages = maps_of(quantized, 2, size, generator)
        if bound.takes(*maps):
            fence.add(name, bound, maps, averages)
    assert len(fence.cases) >= 30
    fence.hold()


def test_what_has_no_product_on_tiles():
    generator = torch.Generator().manual_seed(0)
    dense = quantized_form(FEW["dense"], generator)
    weights = weights_of(FEW["dense"], generator)
    for cpu in (HASWELL, ZEN4):
        assert bind_quantized_to_tiles(dense, weights, Target(cpu)) is None
    assert backend().bind_to_tiles(dense, weights, TARGET) is not None
    for form in (MaxPool(8), Separable((8,), (stencil(8, (3, 3)),)), Grouped((4,), 8, (9, 9), padding=(4, 4, 4, 4))):
        assert backend().bind_to_tiles(quantized_form(form, generator), weights_of(form, generator), TARGET) is None


def test_depths_divide_every_run():
    assert [tile_depth(quads) for quads in ([16], [48], [18], [18, 12], [64, 8], [5])] == [16, 16, 9, 6, 8, 5]
    assert [tile_depth(quads) for quads in ([3], [17], [16, 6], [1])] == [0, 0, 0, 0]


def test_no_sample():
    generator = torch.Generator().manual_seed(6)
    quantized = quantized_form(FEW["dense"], generator)
    y, mean = bind(quantized, weights_of(FEW["dense"], generator)).run([byte_map(0, 12, (5, 6), generator), None])
    assert (y.shape, y.dtype, mean.shape) == ((0, 40, 5, 6), torch.uint8, (0, 40))


HARNESS = """
#include "int8_tiles_emulated.c"
void add(const uint8_t *a, const int8_t *b, int32_t *c, int rows, int depth, int columns) {
    configure(rows, rows, 4 * depth, 4 * columns);
    tile_load(0, c, 4 * columns);
    tile_load(4, a, 4 * depth);
    tile_load(6, b, 4 * columns);
    tile_add(0, 4, 6);
    tile_store(0, c, 4 * columns);
    release();
}
"""


def test_the_emulation_is_the_instruction(tmp_path):
    """Sums of 32 bits that wrap around; rows, depths and columns of every count."""
    (tmp_path / "harness.c").write_text(HARNESS)
    library = tmp_path / "harness.so"
    command = [compiler(), "-O3", "-march=native", "-shared", "-fPIC", "-w", f"-I{RUNTIME}"]
    subprocess.run([*command, str(tmp_path / "harness.c"), "-lm", "-o", str(library)], check=True)
    add, draw = ctypes.CDLL(str(library)).add, np.random.default_rng(0).integers
    for _ in range(200):
        rows, depth, columns = (int(draw(1, 17)) for _ in range(3))
        a = draw(0, 256, (rows, 4 * depth), dtype=np.uint8)
        b = draw(-128, 128, (4 * depth, columns), dtype=np.int8)
        c = draw(-(2**31), 2**31, (rows, columns), dtype=np.int32)
        fours = np.ascontiguousarray(b.reshape(depth, 4, columns).transpose(0, 2, 1))
        want = (c.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)
        add(*(ctypes.c_void_p(x.ctypes.data) for x in (a, fours, c)), rows, depth, columns)
        assert np.array_equal(c, want)


CONFIGURED = """
#include "tile_registers_amx.h"
#ifdef HAS_AMX
void configured(int rows, int bytes) { configure(rows, rows, bytes, 64); release(); }
#endif
"""


@pytest.mark.parametrize("level", ["-O1", "-O2", "-O3"])
def test_the_whole_configuration_is_stored(level, tmp_path):
    """GCC 12 takes it for 8 bytes, and drops the rest unless it is told not to: 8 tiles' bytes and rows."""
    (tmp_path / "configured.c").write_text(CONFIGURED)
    text = machine_code(tmp_path / "configured.c", tmp_path, level, "-w")
    skip_without_amx(text, "ldtilecfg")
    before = text.split("ldtilecfg")[0]
    assert "%esi" in before or "%si" in before  # the bytes of a row
    assert "%dil" in before or "%edi" in before  # the rows


def test_amx_is_compiled(tmp_path):
    """On any x86: the object has the instructions of 2×2 tiles."""
    text = machine_code(RUNTIME / "int8_tiles_amx.c", tmp_path, "-O3", "-ffp-contract=off")
    skip_without_amx(text, "tdpbusd")
    assert text.count("tdpbusd") >= 4 + 2 + 2 + 1
    for instruction in ("ldtilecfg", "tileloadd", "tilestored", "tilerelease"):
        assert instruction in text
