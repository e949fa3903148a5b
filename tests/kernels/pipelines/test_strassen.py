"""Strassen's 1×1 against float64, over shapes that nobody tuned for."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.bound import base, separable_builder, separable_strassen
from leanconv.kernels.cpu.pipelines import strassen
from leanconv.kernels.cpu.pipelines.gemm import Tile
from leanconv.kernels.cpu.pipelines.packing import pack_strassen
from leanconv.kernels.cpu.tuning import cost_model
from leanconv.ops.separable import Separable
from leanconv.ops.separable import separable as reference
from tests.kernels.tolerance import assert_no_worse, laid_out, weights_of

pytestmark = pytest.mark.usefixtures("halide")
FORMS = {
    "plain": Separable((80,), (), 64),
    "mobilenet": Separable((96,), (), 128, bias=True, activation="relu6", average=True),
    "convnext": Separable((72,), (), 90, bias=True, activation="gelu"),  # halves that are not whole vectors
    "project": Separable((130,), (), 34, bias=True, residual=True, average=True),
}
LAYOUTS = st.sampled_from(["nchw", "channels_last", "slice", "crop"])


@pytest.fixture
def requested(monkeypatch):
    """Strassen for every 1×1 of even sizes and enough pixels; the list of requested cores."""
    asked = []

    def tile(cpu, width, pixels, depth):
        return Tile(3, 32, 16) if width % 2 == depth % 2 == 0 and pixels >= 5 else None

    def kernel(pipeline, core, tile, made=separable_strassen.kernel):
        asked.append(core)
        return made(pipeline, core, tile)

    monkeypatch.setattr(base, "strassen_tile", tile)
    for place in (separable_strassen, separable_builder):
        monkeypatch.setattr(place, "kernel", kernel)
    return asked


@torch.no_grad()
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(h=st.integers(1, 10), w=st.integers(3, 20), n=st.integers(0, 3), how=LAYOUTS, other=LAYOUTS)
def test_any_size_batch_and_layout(name, requested, h, w, n, how, other):
    """An even number of pixels; else the direct GEMM is used."""
    requested.clear()
    h = 2 * h
    form = FORMS[name]
    weights = weights_of(form)
    x = laid_out(torch.randn(n, form.middle, h, w), how)
    residual = laid_out(torch.randn(n, form.width, h, w), other) if form.residual else None
    call = bind(form, weights)
    y, means = call([x], residual)
    wide = None if residual is None else residual.double()
    exact, exact_means = reference([x.double()], [t.double() for t in weights], form, wide)
    eager, eager_means = reference([x], weights, form, residual)
    assert_no_worse(y, eager, exact, factor=3.0)  # the largest of few errors; test_long_sums has the promise
    assert_no_worse(means, eager_means, exact_means, factor=3.0)
    assert all(isinstance(core, strassen.StrassenPointwise) for core in requested)
    assert len(requested) == (n > 0)
    assert call.methods == ({"strassen"} if n else set())


@torch.no_grad()
@pytest.mark.parametrize("c", [192, 512, 1536])
def test_long_sums_are_split(c, requested, monkeypatch):
    """For any number of channels the RMS error is below twice PyTorch's, and about that of the direct GEMM."""
    form, x = Separable((c,), (), 64), torch.randn(1, c, 8, 9).relu()
    weights = weights_of(form)
    exact, eager = F.conv2d(x.double(), weights[0].double()), F.conv2d(x, weights[0])
    strassen_y = bind(form, weights)([x])[0]
    monkeypatch.setattr(base, "strassen_tile", lambda *sizes: None)
    direct = bind(form, weights)([x])[0]
    error, direct_error, allowed = (float((y - exact).square().mean().sqrt()) for y in (strassen_y, direct, eager))
    assert error < 2 * allowed
    assert error < 1.5 * direct_error


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [3, 20])
def test_nan_and_infinity_reach_the_paired_pixel_and_no_other(value, at, requested):
    x, form = torch.randn(1, 80, 5, 6), FORMS["plain"]
    x.view(80, 30)[40, at] = value
    y = bind(form, weights_of(form))([x])[0].view(64, 30)
    other = (at + 15) % 30
    assert not y[:, at].isfinite().any()
    assert y[:, [i for i in range(30) if i not in (at, other)]].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("h", "n"), [(40, 1), (41, 1), (41, 2)])
def test_two_threads(h, n, requested, two_threads):
    """Two threads give the same bits as one. If both could compute one pixel, the direct GEMM is used."""
    form, x = FORMS["mobilenet"], torch.randn(n, 96, h, 33)
    call = bind(form, weights_of(form))
    one, means = call([x])
    two, means_two = two_threads(call, [x])
    assert torch.equal(one, two)
    assert torch.equal(means, means_two)
    assert {isinstance(core, strassen.StrassenPointwise) for core in requested} == {h % 2 == 0}


def test_when_the_direct_gemm_is_used(requested, monkeypatch):
    """Two inputs, a gate, bfloat16, and LEANCONV_ARITHMETIC=direct."""
    x = torch.randn(1, 80, 6, 6)
    weights = weights_of(Separable((80,), (), 64))
    bind(Separable((40, 40), (), 64), weights)([x[:, :40], x[:, 40:]])
    bind(Separable((80,), (), 64, gate=True), weights)([x], None, torch.rand(1, 80))
    bind(FORMS["plain"], weights)([x.bfloat16()])
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "direct")
    bind(FORMS["plain"], weights)([x])
    assert len(requested) == 4
    assert not any(isinstance(core, strassen.StrassenPointwise) for core in requested)


def test_weight_factors_are_rounded_once():
    weight = torch.randn(6, 4)
    packed = pack_strassen(weight, 2)
    assert packed.shape == (2, 7, 2, 2)  # a half has 3 outputs: two blocks of 2, the last one half empty
    b11, b22 = weight[:3, :2].double(), weight[3:, 2:].double()
    assert torch.equal(packed[0, 0].T, (b11 + b22)[:2].float())
    assert torch.equal(packed[1, 4].T, torch.stack([b22[2].float(), torch.zeros(2)]))


def test_large_products_use_strassen(cpu):
    """Small ones do not: the additions cost more than the eighth product. Nor do large ones where they cost more."""
    assert cost_model.strassen_tile(replace(cpu, speeds=replace(cpu.speeds, strassen=6.0)), 512, 196, 512) is None
    cpu = replace(cpu, speeds=replace(cpu.speeds, strassen=1.0, memory_bytes=12.0))
    tile = cost_model.strassen_tile(cpu, 512, 196, 512)
    assert tile is not None
    least = cost_model.strassen_cycles(cpu, tile, 512, 196, 512)
    assert all(cost_model.strassen_cycles(cpu, other, 512, 196, 512) >= least for other in cost_model.matrix_tiles(cpu))
    direct = cost_model.matrix_tile(cpu, 512, 196, 512, True)
    assert least < cost_model.MAX_STRASSEN_SHARE * cost_model.matrix_cycles(cpu, direct, 512, 196, 512, True)
    for width, pixels, depth in (
        (512, 196, 16),
        (16, 196, 512),
        (512, 1, 512),
        (511, 196, 512),
        (512, 196, 511),
        (512, 196, 502),
    ):  # 251 is a prime
        assert cost_model.strassen_tile(cpu, width, pixels, depth) is None
