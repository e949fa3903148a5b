"""A stencil, then Strassen's 1×1, against float64, over shapes that nobody tuned for."""

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.kernels.cpu import Target, bind
from leanconv.kernels.cpu.bound import separable_builder, separable_strassen
from leanconv.kernels.cpu.bound.separable import BoundSeparable
from leanconv.kernels.cpu.bound.separable_builder import KernelBuilder
from leanconv.kernels.cpu.compilation import build
from leanconv.kernels.cpu.pipelines import separable_strassen as pipelines
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.runtime import abi
from leanconv.ops.separable import Separable, Stencil
from leanconv.ops.separable import separable as reference
from tests.cpus import NEOVERSE, ZEN4, with_cache
from tests.kernels.tolerance import laid_out, weights_of

pytestmark = pytest.mark.usefixtures("halide")
SQUARE = Stencil(0, 128, (3, 3), padding=(1, 1, 1, 1), bias=True, activation="relu")
MOBILENET = Separable((128,), ((SQUARE,),), 96, bias=True, activation="relu", average=True)
FORMS = {
    "mobilenet": MOBILENET,
    "sic": Separable((128,), ((replace(SQUARE, kernel=(3, 3), dilation=(2, 1), padding=(2, 2, 1, 1)),),), 128,
                     residual=True),
    "fuseconv": Separable(
        (128,),
        ((Stencil(0, 64, (1, 3), padding=(0, 0, 1, 1)), Stencil(64, 64, (3, 1), padding=(1, 1, 0, 0), bias=True)),),
        34, bias=True, activation="gelu", residual=True,
    ),  # two tracks; half of the outputs is no whole vector
    "valid": Separable((64, 96), ((Stencil(0, 160, (2, 2)),),), 64),  # two maps
}  # fmt: skip
LAYOUTS = st.sampled_from(["nchw", "channels_last", "slice", "crop"])


@pytest.fixture
def forced(monkeypatch):
    """Strassen for every block with enough pixels; the list of requested pipelines."""
    asked = []

    def kernel(pipeline, core, tile, made=separable_strassen.kernel):
        asked.append(pipeline)
        return made(pipeline, core, tile)

    monkeypatch.setattr(
        separable_strassen, "strassen_tile", lambda cpu, o, pixels, *more: Tile(3, 32, 16) if pixels > 4 else None
    )
    for place in (separable_strassen, separable_builder):
        monkeypatch.setattr(place, "kernel", kernel)
    return asked


def assert_close(found, eager, exact):
    """RMS error below twice PyTorch's, largest error below 8 times: of few sums the largest error says little."""
    error, allowed = ((y - exact).square().mean().sqrt() for y in (found, eager))
    assert error < 2 * allowed, f"{error:.1e}, PyTorch's own {allowed:.1e}"
    assert (found - exact).abs().max() < 8 * (eager - exact).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    h=st.sampled_from([8, 12, 16]),  # in four blocks of whole rows or more
    w=st.sampled_from([6, 7, 13]),
    n=st.integers(1, 3),
    how=LAYOUTS,
    other=LAYOUTS,
    cache=st.sampled_from([160 << 10, 1 << 20]),
)
def test_any_size_batch_and_layout(name, forced, h, w, n, how, other, cache):
    forced.clear()
    form = FORMS[name]
    weights = weights_of(form)
    cut = name == "valid"  # it makes a row and a column less
    inputs = [laid_out(torch.randn(n, c, h + cut, w + cut), how) for c in form.channels]
    residual = laid_out(torch.randn(n, form.width, h, w), other) if form.residual else None
    wide = None if residual is None else residual.double()
    exact, exact_means = reference([x.double() for x in inputs], [t.double() for t in weights], form, wide)
    eager, eager_means = reference(inputs, weights, form, residual)
    call = bind(form, weights, with_cache(cache))  # blocks of few rows, too
    y, means = call(inputs, residual)
    assert_close(y, eager, exact)
    if form.average:
        assert (means - exact_means).abs().max() < 8 * (eager_means - exact_means).abs().max() + 1e-6
    assert forced == [pipelines.projected]
    assert call.methods == {"strassen"}


@torch.no_grad()
@pytest.mark.parametrize(("h", "n", "rows"), [(42, 1, 7), (41, 6, 41), (41, 1, 1), (3, 1, None)])
def test_two_threads(h, n, rows, forced, monkeypatch, two_threads):
    """Equal blocks, of which there are at least four, and the same bits; else the direct GEMM is used."""
    monkeypatch.setattr(
        separable_strassen, "strassen_cycles", lambda cpu, tile, o, pixels, depth, blocks=1: blocks
    )  # few
    x, call = torch.randn(n, 128, h, 13), bind(MOBILENET, weights_of(MOBILENET), with_cache(20 << 20))
    one, means = call([x])
    two, means_two = two_threads(call, [x])
    assert torch.equal(one, two)
    assert torch.equal(means, means_two)
    assert (forced[-1] is pipelines.projected) == (rows is not None)
    if rows is not None:
        assert [step.loop.work.block for step in call._kernels.values()] == [13 * rows] * 2


@torch.no_grad()
def test_without_a_compiler(forced, monkeypatch):
    """Blocks run one after the other there too."""
    weights, x = weights_of(MOBILENET), torch.randn(2, 128, 8, 6)
    target = with_cache(4 * 7 * 128 * 6 * 2)  # of two rows
    expected, means = bind(MOBILENET, weights, target)([x])
    monkeypatch.setattr(build, "compiler", lambda: "")
    memos = (build.runtime, build._kernel, abi.library)
    try:
        for memo in memos:
            memo.cache_clear()
        call = bind(MOBILENET, weights, target)
        y, found = call([x])
    finally:
        for memo in memos:
            memo.cache_clear()
    assert [step.loop.work.block for step in call._kernels.values()] == [2 * 6]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(found, means)


@torch.no_grad()
def test_when_the_direct_gemm_is_used(forced, monkeypatch):
    """A gate, bfloat16, two stencils, a stride, halves that are no whole vectors, and LEANCONV_ARITHMETIC=direct."""
    x = torch.randn(1, 128, 6, 6)
    twice = replace(MOBILENET, stages=(MOBILENET.stages[0], (replace(SQUARE, bias=False),)))
    for form in (
        replace(MOBILENET, gate=True),
        twice,
        Separable((128,), ((replace(SQUARE, stride=(2, 2)),),), 96),
        Separable((112,), ((replace(SQUARE, channels=112),),), 96),
    ):
        bind(form, weights_of(form))([x[:, : form.middle]], None, torch.rand(1, 128) if form.gate else None)
    bind(MOBILENET, weights_of(MOBILENET))([x.bfloat16()])
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "direct")
    bind(MOBILENET, weights_of(MOBILENET))([x])
    assert len(forced) == 6
    assert pipelines.projected not in forced


@pytest.mark.parametrize("cpu", [ZEN4, NEOVERSE], ids=["zen4", "neoverse"])  # where it pays
def test_large_maps_get_blocks(cpu, two_threads):
    """Large maps only; block rows divide the map, and their sums fill a quarter of the cache, or half of it.

    There are at least four blocks, whatever the number of threads.
    """

    def rows(channels, side, height=0, l2=1 << 20, sums=1.0):
        stencil, speeds = replace(SQUARE, channels=channels), replace(cpu.speeds, strassen=sums, memory_bytes=12.0)
        form = Separable((channels,), ((stencil,),), channels)
        x = torch.empty(1, channels, height or side, side).contiguous(memory_format=torch.channels_last)
        bound = BoundSeparable(form, weights_of(form), Target(replace(cpu, l2=l2, speeds=speeds)))
        return separable_strassen._rows(
            KernelBuilder(bound, bound.parts, [x], None, None, (1, channels, height or side, side))
        )

    assert rows(512, 14) == 2  # of 1, 2, 7 and 14
    assert two_threads(rows, 512, 14) == 2
    assert rows(512, 20) == 2
    assert rows(512, 16) == 4
    assert rows(512, 14, 13) is None  # single rows are too few pixels
    assert rows(512, 5) is None  # with narrower vectors side 7 suffices
    assert rows(256, 28, sums=3.0) is None  # sums that cost what the products save
    assert rows(512, 14, l2=100 << 10) is None
