"""Seven products of halves in place of a 1×1 against float64, over shapes that nobody tuned for."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.bound import base, separable, separable_strassen
from leanconv.kernels.cpu.pipelines import strassen
from leanconv.kernels.cpu.pipelines.gemm import Tile
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
def halved(monkeypatch):
    """Every 1×1 of even sizes and enough pixels is made so; what the kernels were asked for."""
    asked = []

    def tile(cpu, width, pixels, depth):
        return Tile(3, 32, 16) if width % 2 == depth % 2 == 0 and pixels >= 5 else None

    def kernel(pipeline, core, tile, made=separable_strassen.kernel):
        asked.append(core)
        return made(pipeline, core, tile)

    monkeypatch.setattr(base, "strassen_tile", tile)
    for place in (separable_strassen, separable):
        monkeypatch.setattr(place, "kernel", kernel)
    return asked


@torch.no_grad()
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(h=st.integers(2, 20), w=st.integers(3, 20), n=st.integers(0, 3), how=LAYOUTS, other=LAYOUTS)
def test_any_size_batch_and_layout(name, halved, h, w, n, how, other):
    halved.clear()
    form = FORMS[name]
    weights = weights_of(form)
    x = laid_out(torch.randn(n, form.middle, h, w), how)
    residual = laid_out(torch.randn(n, form.width, h, w), other) if form.residual else None
    call = bind(form, weights)
    y, means = call([x], residual)
    wide = None if residual is None else residual.double()
    exact, exact_means = reference([x.double()], [t.double() for t in weights], form, wide)
    eager, eager_means = reference([x], weights, form, residual)
    assert_no_worse(y, eager, exact)
    assert_no_worse(means, eager_means, exact_means)
    assert all(isinstance(core, strassen.Halved) for core in halved)
    assert len(halved) == (n > 0)
    assert call.methods == ({"strassen"} if n else set())


@torch.no_grad()
@pytest.mark.parametrize("c", [192, 512, 1536])
def test_long_sums_are_made_piece_by_piece(c, halved, monkeypatch):
    """The average error is less than twice PyTorch's however many channels there are, and about the direct one's."""
    form, x = Separable((c,), (), 64), torch.randn(1, c, 8, 9).relu()
    weights = weights_of(form)
    exact, eager = F.conv2d(x.double(), weights[0].double()), F.conv2d(x, weights[0])
    seven = bind(form, weights)([x])[0]
    monkeypatch.setattr(base, "strassen_tile", lambda *sizes: None)
    direct = bind(form, weights)([x])[0]
    error, direct_error, allowed = (float((y - exact).square().mean().sqrt()) for y in (seven, direct, eager))
    assert error < 2 * allowed
    assert error < 1.5 * direct_error


@torch.no_grad()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [3, 20])
def test_what_is_no_number_reaches_its_pair_and_nothing_else(value, at, halved):
    x, form = torch.randn(1, 80, 5, 6), FORMS["plain"]
    x.view(80, 30)[40, at] = value
    y = bind(form, weights_of(form))([x])[0].view(64, 30)
    other = (at + 15) % 30
    assert not y[:, at].isfinite().any()
    assert y[:, [i for i in range(30) if i not in (at, other)]].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(("h", "n"), [(40, 1), (41, 1), (41, 2)])
def test_two_threads(h, n, halved, two_threads):
    """They give the same numbers as one; where a pixel would be made by both, the direct product is taken."""
    form, x = FORMS["mobilenet"], torch.randn(n, 96, h, 33)
    call = bind(form, weights_of(form))
    one, means = call([x])
    two, means_two = two_threads(call, [x])
    torch.testing.assert_close(means, means_two)
    if h * 33 % 2 and n == 1:
        assert not isinstance(halved[-1], strassen.Halved)
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    else:
        assert all(isinstance(core, strassen.Halved) for core in halved)
        assert torch.equal(one, two)


def test_where_the_direct_product_stays(halved, monkeypatch):
    """Two inputs, factors of channels, bfloat16; where the environment asks for it."""
    x = torch.randn(1, 80, 6, 6)
    half = weights_of(Separable((80,), (), 64))
    bind(Separable((40, 40), (), 64), half)([x[:, :40], x[:, 40:]])
    bind(Separable((80,), (), 64, gate=True), half)([x], None, torch.rand(1, 80))
    bind(FORMS["plain"], half)([x.bfloat16()])
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "direct")
    bind(FORMS["plain"], half)([x])
    assert len(halved) == 4
    assert not any(isinstance(core, strassen.Halved) for core in halved)


def test_factors_of_weights_are_rounded_once():
    weight = torch.randn(6, 4)
    packed = strassen.pack_products(weight, 2)
    assert packed.shape == (2, 7, 2, 2)  # outputs 0 to 2 of a half in two blocks, the last one half empty
    b11, b22 = weight[:3, :2].double(), weight[3:, 2:].double()
    assert torch.equal(packed[0, 0].T, (b11 + b22)[:2].float())
    assert torch.equal(packed[1, 4].T, torch.stack([b22[2].float(), torch.zeros(2)]))


def test_it_is_taken_where_it_pays(cpu):
    """Large products only: sums of the map and of the products take their time."""
    tile = cost_model.strassen_tile(cpu, 512, 196, 512)
    assert tile is not None
    least = cost_model.strassen_cycles(cpu, tile, 512, 196, 512)
    assert all(cost_model.strassen_cycles(cpu, other, 512, 196, 512) >= least for other in cost_model.matrix_tiles(cpu))
    direct = cost_model.matrix_tile(cpu, 512, 196, 512, True)
    assert least < cost_model.PAYS * cost_model.matrix_cycles(cpu, direct, 512, 196, 512, True)
    for width, pixels, depth in (
        (512, 196, 16),
        (16, 196, 512),
        (512, 1, 512),
        (511, 196, 512),
        (512, 196, 511),
        (512, 196, 502),
    ):  # 251 is a prime
        assert cost_model.strassen_tile(cpu, width, pixels, depth) is None
