"""How kernels are called: bound, from many threads, without a compiler, without halide."""

import gc
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from leanconv import kernels
from leanconv.errors import BadInput, MissingExtra
from leanconv.kernels.cpu import Target, bind
from leanconv.kernels.cpu.bound import base
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.runtime import abi
from leanconv.kernels.cpu.tuning.cpu import this_cpu
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.separable import Separable, Stencil, separable
from leanconv.ops.upsample import Upsample, upsample
from tests.kernels.tolerance import assert_no_worse

STAGE = (Stencil(0, 6, (3, 3), padding=(1, 1, 1, 1)),)
FORM = Separable((6,), (STAGE,), 20, bias=True, activation="relu", average=True)


@pytest.fixture
def weights():
    return [torch.randn(6, 1, 3, 3), torch.randn(20, 6), torch.randn(20)]


@torch.no_grad()
def test_outputs_are_written_whole(halide, weights, monkeypatch):
    real = torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", lambda *args, **more: real(*args, **more).fill_(float("nan")))
    for h, w in ((1, 1), (3, 17), (16, 16)):
        y, _ = bind(FORM, weights)([torch.randn(1, 6, h, w)])
        assert y.isfinite().all()


@torch.no_grad()
def test_eight_threads_on_one_bound_kernel(halide, weights):
    call = bind(FORM, weights)
    inputs = [torch.randn(1 + i % 3, 6, 5 + i % 4, 9) for i in range(40)]
    expected = [separable([x], weights, FORM)[0] for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: call([x])[0], inputs * 5))
    for y, e in zip(found, expected * 5, strict=True):
        torch.testing.assert_close(y, e)


@torch.no_grad()
def test_two_threads_of_torch_give_the_same_numbers(halide, weights, two_threads):
    x, call = torch.randn(2, 6, 40, 33), bind(FORM, weights)
    one, means = call([x])
    two, means_two = two_threads(call, [x])
    assert torch.equal(one, two)
    torch.testing.assert_close(means, means_two)


@torch.no_grad()
def test_no_memory_is_lost_over_ten_thousand_calls(halide, weights):
    x, call = torch.randn(1, 6, 4, 4).contiguous(memory_format=torch.channels_last), bind(FORM, weights)
    for _ in range(1000):
        call([x])
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(10_000):
        call([x])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2048, f"{grown} KiB more"


@torch.no_grad()
def test_many_sizes_do_not_pile_up(halide, weights):
    call = bind(Separable((6,), (), 20, bias=True), weights[1:])
    for size in range(1, 150):
        call([torch.randn(1, 6, size, 8)])
    assert len(call._kernels) <= base._KEPT


@torch.no_grad()
def test_without_a_compiler_the_kernels_are_made_in_the_process(halide, weights, monkeypatch):
    monkeypatch.setattr(build, "compiler", lambda: "")
    for cached in (build.runtime, build._kernel, abi.library):
        cached.cache_clear()
    try:
        assert "no C compiler" in kernels.status()
        x = torch.randn(2, 6, 9, 7)
        short, means = bind(FORM, weights)([x.bfloat16()])
        y = separable([x], weights, FORM)[0]
        torch.testing.assert_close(short, y.bfloat16(), rtol=0.02, atol=0.1)
        torch.testing.assert_close(means, short.float().mean((2, 3)))
        y, means = bind(FORM, weights)([x])
        torch.testing.assert_close(y, separable([x], weights, FORM)[0])
        torch.testing.assert_close(means, y.mean((2, 3)))
        form, plain = GatedSum((6,), 20, bias=True), [weights[1], weights[2]]
        z, _ = bind(form, plain)(y, [x], means, [averaged(x)])
        expected = gated_pointwise(y.double(), [x.double()], [w.double() for w in plain], form)[0].float()
        torch.testing.assert_close(z, expected)
        assert bind(FORM, weights).prepare(x.contiguous(memory_format=torch.channels_last), None, None) is None
    finally:
        for cached in (build.runtime, build._kernel, abi.library):
            cached.cache_clear()


@torch.no_grad()
def test_without_halide_it_says_how_to_get_the_speed(weights, monkeypatch):
    from leanconv.kernels.cpu.pipelines import frontend

    monkeypatch.setitem(sys.modules, "halide", None)
    assert "pip install 'leanconv[cpu]'" in kernels.status()
    assert "PyTorch's own run" in kernels.status()
    frontend.halide.cache_clear()
    with pytest.raises(MissingExtra, match=r"pip install 'leanconv\[cpu\]'"):
        bind(FORM, weights)
    frontend.halide.cache_clear()


@torch.no_grad()
def test_what_the_kernels_do_not_take(halide, weights):
    call = bind(FORM, weights)
    with pytest.raises(BadInput, match="float32 maps"):
        call([torch.randn(1, 6, 4, 4, dtype=torch.double)])
    with pytest.raises(BadInput, match="inputs of"):
        call([torch.randn(1, 7, 4, 4)])
    two = bind(Separable((6, 2), (), 4), [torch.randn(4, 8)])
    with pytest.raises(BadInput, match=r"maps of one dtype .* torch\.bfloat16, torch\.float32"):
        two([torch.randn(1, 6, 4, 4), torch.randn(1, 2, 4, 4, dtype=torch.bfloat16)])


@torch.no_grad()
def test_bfloat16_is_rounded_as_pytorch_rounds(halide):
    """To nearest, ties to even: one product for each number, so that every bit is known."""
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 1.0, 3.0])
    x, taps = torch.randn(1, 45, 4, 5).bfloat16(), torch.cat([ties, torch.randn(40)])
    x[:, :5] = x[:, :5].sign()
    y, _ = bind(Separable((45,), ((Stencil(0, 45),),)), [taps.view(-1, 1, 1, 1)])([x])
    assert torch.equal(y, (x.float() * taps[:, None, None]).bfloat16())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_averages_of_any_dtype(halide, dtype):
    """They go by their address: read as float32 they were nonsense, and shorter than what is read."""
    a, x, weight = torch.randn(2, 5, 7, 8).bfloat16(), torch.randn(2, 6, 7, 8).bfloat16(), torch.randn(5, 6)
    first, second = (t.float().mean((2, 3)).bfloat16() for t in (a, x))
    call = bind(GatedSum((6,), 5), [weight])
    want, _ = call(a, [x], first.float(), [second.float()])
    assert torch.equal(call(a, [x], first.to(dtype), [second.to(dtype)])[0], want)


@torch.no_grad()
def test_bfloat16_keeps_the_nan_of_a_gpu(halide):
    """Its bits are all set: rounded like a number it would overflow into -0."""
    bias = torch.tensor([0x7FFFFFFF, 0], dtype=torch.int32).view(torch.float32)
    x = torch.randn(1, 3, 4, 5).bfloat16()
    for activation in ("none", "relu"):
        form = Separable((3,), (), 2, bias=True, activation=activation)
        y, _ = bind(form, [torch.randn(2, 3), bias])([x])
        assert y[:, 0].isnan().all()
        assert y[:, 1].isfinite().all()


@torch.no_grad()
def test_a_machine_without_products_of_pairs(halide):
    """Then bfloat16 is widened before the products; the same numbers come out."""
    target = Target(replace(this_cpu(), bf16=False))
    around = (1, 1, 1, 1)
    x, skip = (torch.randn(2, c, 9, 7).bfloat16() for c in (6, 5))
    short = [
        torch.randn(sizes).bfloat16() for sizes in ((6, 1, 3, 3), (20, 6), (20,), (4, 3, 3, 3), (7, 11), (6, 2, 2, 2))
    ]
    wide = [w.double() for w in short]
    gate = torch.rand(2, 11)
    double = [x.double(), skip.double()]
    for form, inputs, which, rest in (
        (FORM, 1, slice(0, 3), ()),
        (Separable((6, 5), (), 7, gate=True), 2, slice(4, 5), (None, gate)),
        (Grouped((6,), 4, (3, 3), padding=around, groups=2), 1, slice(3, 4), ()),
        (Upsample((6,), 2), 1, slice(5, 6), ()),
    ):
        op = {Separable: separable, Grouped: grouped, Upsample: upsample}[type(form)]
        y, _ = bind(form, short[which], target)([x, skip][:inputs], *rest)
        eager = op([x, skip][:inputs], short[which], form, *rest)[0]
        exact = op(double[:inputs], wide[which], form, *[None if r is None else r.double() for r in rest])[0]
        assert_no_worse(y, eager, exact, dtype=torch.bfloat16)


@torch.no_grad()
def test_nothing_is_broadcast_nor_read_beyond_its_end(halide):
    x, weight = torch.randn(2, 4, 5, 6), torch.randn(4, 4, 1, 1)
    added = bind(Separable((4,), (), 4, residual=True), [weight])
    for wrong in ((1, 4, 5, 6), (2, 4, 1, 1), (2, 4, 5, 1), (2, 1, 5, 6), (3, 4, 5, 6)):
        with pytest.raises(BadInput):
            added([x], torch.randn(wrong))
        with pytest.raises(BadInput):
            bind(Grouped((4,), 4, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), residual=True), [weight])(
                [x], torch.randn(wrong)
            )
    with pytest.raises(BadInput, match="channels"):
        added([x])  # the map that it adds is missing
    gated = bind(Separable((4,), (), 4, gate=True), [weight])
    for wrong in ((1, 4), (2, 1), (2, 5), (2, 4, 1)):
        with pytest.raises(BadInput, match="averages and gates"):
            gated([x], None, torch.randn(wrong))
    two = bind(Separable((4, 4), (), 4), [torch.randn(4, 8, 1, 1)])
    for wrong in ((1, 4, 5, 6), (2, 4, 4, 6)):
        with pytest.raises(BadInput, match="maps of"):
            two([x, torch.randn(wrong)])
        with pytest.raises(BadInput, match="maps of"):
            bind(Upsample((4, 4), 3), [torch.randn(8, 3, 2, 2)])([x, torch.randn(wrong)])
        with pytest.raises(BadInput, match="maps of"):
            bind(GatedSum((4,), 4), [weight])(torch.randn(wrong), [x], torch.randn(2, 4), [torch.randn(2, 4)])
    with pytest.raises(BadInput, match="averages and gates"):
        bind(GatedSum((4,), 4), [weight])(x, [x], torch.randn(1, 4), [torch.randn(2, 4)])
