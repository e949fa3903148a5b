"""Kernels on 8-bit integers give the bits of the integer reference, tolerance 0."""

import ctypes
import itertools
import subprocess
from dataclasses import replace

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.kernels import Target, backend, cpuinfo, this_cpu
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.runtime import int8_abi
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.integer_reference import primitive
from leanconv.ops.pool import MaxPool
from leanconv.ops.quantized import Quantization, Quantized, channels_of, inner_maps
from leanconv.ops.separable import Separable
from leanconv.ops.upsample import Upsample
from tests.kernels.quantized_cases import (
    AROUND,
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

SIZES = [(1, 1), (2, 3), (7, 7), (5, 67), (13, 16)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("c", "o"), [(5, 3), (16, 32), (24, 40), (64, 64), (72, 100)])
def test_separable(c, o, size):
    for seed, form in enumerate(separables(c, o).values()):
        check(form, size, seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("c", "o"), [(1, 2), (3, 5), (8, 16), (20, 33)])
def test_grouped(c, o, size):
    for seed, form in enumerate(grouped_forms(c, o).values()):
        check(form, size, seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("c", "o"), [(5, 3), (16, 32), (72, 100)])
def test_gated_sum_upsample_pool(c, o, size):
    for affine, activation in itertools.product((False, True), ("none", "relu", "silu")):
        check(GatedSum((c, 4), o, True, affine, activation, average=True), size)
    check(Upsample((c, 4), o, 2, True, "relu", average=True), size)
    check(Upsample((c,), o, 3), size)
    check(MaxPool(c, average=True), size)
    check(MaxPool(o, (3, 3), (2, 2), AROUND), size)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "gelu"])
@pytest.mark.parametrize("float_output", [False, True])
def test_activations_and_float_output(activation, float_output):
    three = {"activation": activation}
    for seed, residual in enumerate((False, True)):
        three["residual"] = residual
        for form in (
            Separable((24,), (), 19, True, **three),
            Separable((32,), (), 1, True, **three),
            Separable((24,), (stencil(24, (3, 3), padding=AROUND),), **three),
            Separable((32,), (stencil(32, (3, 3), padding=AROUND),), **three),
            Grouped((16,), 12, (3, 3), groups=4, interleaved=True, **three),
        ):
            check(form, (5, 9), seed, float_output=float_output)
    check(Upsample((5,), 7, 2, True, activation), (5, 9), float_output=float_output)
    check(GatedSum((5,), 37, True, True, activation), (5, 9), float_output=float_output)


def extreme(form, low, generator):
    """Weights of -127 or 127 alone, multipliers so small that the largest sum stays inside of the range."""
    made = weights_of(form, generator)
    for index, numbers in enumerate(made):
        if numbers.dtype == torch.int8:
            sign = torch.randint(0, 2, numbers.shape, generator=generator) * 2 - 1 if low is None else low
            made[index] = (torch.ones_like(numbers) * 127 * sign).to(torch.int8)
        elif numbers.dtype == torch.float32:
            made[index] = numbers / 40
    return made


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_largest_sums(name, zero_point):
    """Bytes of 0 and 255 under weights of ±127: no product and no pair of products saturates on the way."""
    generator = torch.Generator().manual_seed(1)
    form = FEW[name]
    q = Quantization(0.02, zero_point)
    adds = isinstance(form, GatedSum) or getattr(form, "residual", False)
    quantized = Quantized(form, (q,) * len(channels_of(form)), q, (q,) * inner_maps(form), q if adds else None)
    for kind, sign in itertools.product(("low", "high", "random"), (1, -1, None)):
        maps, averages = maps_of(quantized, 1, (6, 7), generator, kind)
        assert_same_bits(quantized, extreme(form, sign, generator), maps, averages)


@pytest.mark.parametrize("name", FEW)
def test_more_threads_and_many_blocks(name, two_threads):
    """A map of many blocks of rows, on one and on two threads, call after call."""
    generator = torch.Generator().manual_seed(2)
    quantized = quantized_form(FEW[name], generator)
    maps, averages = maps_of(quantized, 3, (61, 83), generator)
    weights = weights_of(FEW[name], generator)
    bound = backend().bind(quantized, weights, replace(Target(), cpu=replace(this_cpu(), l2=16 << 10)))
    wanted = primitive(quantized, maps, weights, averages)
    for run in (bound.run, lambda *given: two_threads(bound.run, *given)) * 2:
        for made, right in zip(run(maps, averages), wanted, strict=True):
            assert torch.equal(made, right)


@pytest.mark.parametrize("name", [name for name in FEW if name != "pool"])
@pytest.mark.parametrize("layout", ["planes", "channels_last", "slice"])
def test_float32_and_slices(name, layout):
    """Maps of float32 are quantized as they are read; NaN is zero; a slice of a wider map is read where it lies."""
    generator = torch.Generator().manual_seed(3)
    quantized = quantized_form(FEW[name], generator)
    weights = weights_of(FEW[name], generator)
    maps, averages = maps_of(quantized, 2, (9, 300), generator)
    first = isinstance(FEW[name], GatedSum)
    chosen = list(maps)
    for index in range(first, first + len(quantized.inputs)):
        n, c, h, w = maps[index].shape
        if layout == "slice":
            wide = byte_map(n, c + 12, (h, w), generator)
            chosen[index] = wide[:, 8 : 8 + c]
            continue
        x = torch.randn(n, c, h, w, generator=generator) * 10
        x[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
        chosen[index] = x if layout == "planes" else x.contiguous(memory_format=torch.channels_last)
    assert_same_bits(quantized, weights, chosen, averages)


def test_image_in_planes_is_launched_without_a_copy():
    generator = torch.Generator().manual_seed(4)
    form = Grouped((3,), 24, (3, 3), padding=AROUND, activation="relu")
    quantized, weights = quantized_form(form, generator), weights_of(form, generator)
    x = torch.randn(2, 3, 20, 31, generator=generator)
    bound = backend().bind(quantized, weights)
    prepared = bound.prepare(x, None)
    y = torch.empty_strided(prepared.size, prepared.strides, dtype=prepared.dtype)
    launch = prepared.launch()
    launch.put(0, x)
    launch.put(1, y)
    batch = backend().batch([launch])
    batch()
    assert torch.equal(y, primitive(quantized, [x, None], weights)[0])
    assert bound.planes
    assert len(batch.timed()) == 1


def test_gated_sum_is_launched_with_its_averages():
    generator = torch.Generator().manual_seed(5)
    quantized = quantized_form(FEW["gated sum"], generator)
    weights = weights_of(FEW["gated sum"], generator)
    maps, averages = maps_of(quantized, 2, (6, 5), generator)
    prepared = backend().bind(quantized, weights).prepare(*maps)
    y, mean = torch.empty_strided(prepared.size, prepared.strides, dtype=torch.uint8), torch.empty(prepared.size[:2])
    launch = prepared.launch(averages)
    for index, tensor in enumerate([*maps, y, mean]):
        launch.put(index, tensor)
    backend().batch([launch])()
    for made, right in zip((y, mean), primitive(quantized, maps, weights, averages), strict=True):
        assert torch.equal(made, right)


@pytest.mark.parametrize(("o", "size"), [(40, (61, 83)), (5, (7, 3)), (64, (1, 1))])
def test_gated_sum_in_place(o, size, two_threads):
    generator = torch.Generator().manual_seed(8)
    form = GatedSum((12,), o, True, True, "relu", average=True)
    quantized, weights = quantized_form(form, generator), weights_of(form, generator)
    maps, averages = maps_of(quantized, 2, size, generator)
    y, mean = primitive(quantized, maps, weights, averages)
    bound = backend().bind(quantized, weights)
    prepared = two_threads(bound.prepare_in_place, *maps)
    found, launch = torch.empty(prepared.size[:2]), prepared.launch(averages)
    for index, tensor in enumerate([*maps, maps[0], found]):
        launch.put(index, tensor)
    two_threads(lambda: backend().batch([launch])())
    assert torch.equal(maps[0], y)
    assert torch.equal(found, mean)
    assert bound.prepare_in_place(maps[0].float(), maps[1]) is None


def test_no_sample_and_wrong_maps():
    generator = torch.Generator().manual_seed(6)
    quantized = quantized_form(FEW["dense"], generator)
    bound = backend().bind(quantized, weights_of(FEW["dense"], generator))
    y, mean = bound.run([byte_map(0, 12, (5, 6), generator), None])
    assert (y.shape, y.dtype, mean.shape) == ((0, 40, 5, 6), torch.uint8, (0, 40))
    with pytest.raises(BadInput, match="channels"):
        bound.run([byte_map(1, 11, (5, 6), generator), None])
    with pytest.raises(BadInput, match="uint8 or float32"):
        bound.run([torch.zeros(1, 12, 5, 6, dtype=torch.int8), None])


def test_no_kernel_for_very_many_taps():
    form = Grouped((4,), 8, (9, 9), padding=(4, 4, 4, 4))
    generator = torch.Generator().manual_seed(7)
    assert backend().bind(quantized_form(form, generator), weights_of(form, generator)) is None


@pytest.mark.parametrize(("channels", "fits"), [(66_000, True), (67_000, False)])
def test_no_kernel_for_sums_beyond_int32(channels, fits):
    """The largest sum of so many channels is exact, or no kernel computes it."""
    form = Quantized(Separable((channels,), (), 1), (Quantization(1.0),), None)
    weights = [torch.full((1, channels, 1, 1), 127, dtype=torch.int8), torch.ones(1), torch.zeros(1, dtype=torch.int32)]
    x = torch.full((1, channels, 1, 1), 255, dtype=torch.uint8)
    assert (backend().bind(form, weights) is not None) == fits
    if fits:
        assert_same_bits(form, weights, [x, None, None])


def _built(folder, flags):
    """The runtime of these flags."""
    path = folder / "runtime.so"
    sources = [*build.RUNTIME.glob("int8*.c"), build.RUNTIME / "scratch.c"]
    command = [build.compiler(), "-O2", "-fPIC", "-shared", "-ffp-contract=off", *flags, "-o", str(path)]
    subprocess.run([*command, *map(str, sources), "-lm", "-lpthread"], check=True)
    lib = ctypes.CDLL(str(path))
    lib.lc_int8.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
    return lib


VECTORS = {
    "any": (["-DLC_PORTABLE"], 16),
    "avx2": (["-mavx2", "-mfma"], 32),
    "avx512 without vnni": (["-mavx512bw", "-mavx512vl", "-mfma"], 64),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VECTORS)
def test_other_vectors(name, tmp_path, monkeypatch):
    """What other processors run, compiled for them and run here: the same bits."""
    flags, vector = VECTORS[name]
    if name != "any" and not set(name.split()[0:1]) & {word[:6] for word in cpuinfo()[1]}:
        pytest.skip(f"this processor has no {name}")
    lib = _built(tmp_path, flags)
    monkeypatch.setattr(int8_abi, "runtime", lambda: lib)
    assert int8_abi.vector_bytes() == vector
    for c, o in [(5, 3), (24, 40), (72, 70)]:
        every = separables(c, o) | grouped_forms(c % 17, o) | FEW
        for seed, form in enumerate(every.values()):
            check(form, (7, 19), seed)
            check(form, (5, 6), seed, float_output=not form.average)
