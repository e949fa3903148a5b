"""Direct and Winograd group convolutions against float64, over shapes that nobody tuned for."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.errors import BadInput
from leanconv.kernels.cpu import Target, bind
from leanconv.kernels.cpu.pipelines.element import BFLOAT16, FLOAT32
from leanconv.kernels.cpu.pipelines.padded import GroupedCore
from leanconv.kernels.cpu.tuning import direct_or_winograd
from leanconv.kernels.cpu.tuning.direct_or_winograd import choose_direct_or_winograd
from leanconv.ops.grouped import Grouped
from leanconv.ops.grouped import grouped as reference
from tests.cpus import HASWELL, ZEN4
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.usefixtures("halide")
AROUND = (1, 1, 1, 1)
FORMS = {
    "hetconv": Grouped((16,), 32, (3, 3), padding=AROUND, groups=4, pointwise=True, bias=True, activation="relu"),
    "shifted": Grouped(
        (15,), 9, (3, 3), (2, 2), (1, 1), AROUND, 3, interleaved=True, pointwise=True, bias=True,
        residual=True, average=True,
    ),
    "gwc_pwc": Grouped(
        (7, 5), 12, (3, 3), padding=AROUND, groups=2, bias=True, inner_activation="relu", project=19,
        project_bias=True, activation="silu", residual=True,
    ),
    "spconv": Grouped((6, 6, 4), 40, (3, 3), padding=AROUND, groups=2, pointwise=True, average=True),
    "interleaved": Grouped((5, 7), 6, (3, 3), padding=AROUND, groups=3, interleaved=True, pointwise=True),
    "dense": Grouped((3,), 13, (5, 2), (1, 2), (1, 3), (0, 2, 3, 1), activation="hardswish"),
    "image": Grouped((4,), 16, (3, 3), (2, 2), padding=AROUND, pointwise=True, bias=True, residual=True, average=True),
    "wide": Grouped(  # too many channels to transform all at once
        (90, 70), 34, (3, 3), padding=(2, 0, 1, 3), groups=2, interleaved=True, pointwise=True, bias=True,
        activation="relu", residual=True, average=True,
    ),
    "uneven": Grouped((69, 63), 24, (3, 3), groups=4, bias=True, residual=True),  # no padding, remainders everywhere
    "resnext": Grouped((34,), 17, (3, 3), (2, 1), padding=AROUND, groups=17, bias=True),
}  # fmt: skip


WINOGRAD = ("hetconv", "gwc_pwc", "spconv", "interleaved", "wide", "uneven")  # forms that Winograd can compute
CASES = [(name, dtype, "direct") for name in sorted(FORMS) for dtype in DTYPES]
CASES += [(name, torch.float32, "winograd") for name in WINOGRAD]


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    torch.manual_seed(0)
    name, dtype, method = request.param
    form = FORMS[name]
    c, o = sum(form.channels), form.out_channels
    weights = [torch.randn(o, c // form.groups, *form.kernel)]
    weights += [torch.randn(o, c, 1, 1)] * form.pointwise + [torch.randn(o)] * form.bias
    if form.project is not None:
        weights += [torch.randn(form.project, o, 1, 1)] + [torch.randn(form.project)] * form.project_bias
    weights = [w.to(dtype) for w in weights]
    bound = bind(form, weights)
    bound.method = method
    return form, weights, bound, dtype


@torch.no_grad()
@settings(max_examples=7, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_size_batch_and_layout(case, data):
    form, weights, bound, dtype = case
    h, w, n = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24)), data.draw(st.integers(0, 3))
    p, q = form.size(h, w)
    if min(p, q) < 1:
        return
    layout = data.draw(st.sampled_from(["nchw", "channels_last", "slice", "crop"]))
    inputs = [laid_out(torch.randn(n, c, h, w).to(dtype), layout) for c in form.channels]
    residual = laid_out(torch.randn(n, form.width, p, q).to(dtype), layout) if form.residual else None
    y, means = bound(inputs, residual)
    wide = None if residual is None else residual.double()
    exact, exact_means = reference([x.double() for x in inputs], [w.double() for w in weights], form, wide)
    eager, eager_means = reference(inputs, weights, form, residual)
    assert y.dtype == dtype
    assert_no_worse(y, eager, exact, dtype=dtype)
    assert_no_worse(means, eager_means, exact_means, 4.0, dtype)


@torch.no_grad()
def test_an_nchw_image_is_read_without_a_copy():
    """Without a copy; as a residual it becomes channels_last like any other map."""
    form = Grouped((3,), 3, (3, 3), padding=AROUND, residual=True)
    weights, x = [torch.randn(3, 3, 3, 3)], torch.randn(2, 3, 37, 41)
    bound = bind(form, weights)
    assert bound.takes(x)
    assert not bound.takes(x[:, :, :, 1:])
    assert not bind(Grouped((5,), 3, (3, 3)), [torch.randn(3, 5, 3, 3)]).takes(torch.randn(2, 5, 37, 41))
    exact, _ = reference([x.double()], [weights[0].double()], form, x.double())
    assert_no_worse(bound([x], x)[0], reference([x], weights, form, x)[0], exact)


@torch.no_grad()
@pytest.mark.parametrize("w", [1, 3, 7])
def test_rows_of_one_tile(case, w):
    """If a tile is a whole row, taps left and right of the map are skipped."""
    form, weights, bound, dtype = case
    inputs = [laid_out(torch.randn(2, c, 5, w).to(dtype), "channels_last") for c in form.channels]
    if min(form.size(5, w)) < 1:
        return
    residual = torch.randn(2, form.width, *form.size(5, w)).to(dtype) if form.residual else None
    wide = None if residual is None else residual.double()
    exact, _ = reference([x.double() for x in inputs], [w.double() for w in weights], form, wide)
    y = bound(inputs, residual)[0]
    assert_no_worse(y, reference(inputs, weights, form, residual)[0], exact, dtype=dtype)


@torch.no_grad()
def test_a_wide_layer_on_a_small_map():
    """Many blocks of channels, two groups, and a map of four pixels."""
    form = Grouped((256,), 128, (3, 3), padding=AROUND, groups=2, pointwise=True, bias=True)
    weights = [torch.randn(128, 128, 3, 3), torch.randn(128, 256), torch.randn(128)]
    x = torch.randn(5, 256, 2, 2)
    y, _ = bind(form, weights)([x])
    exact, _ = reference([x.double()], [w.double() for w in weights], form)
    assert_no_worse(y, reference([x], weights, form)[0], exact)


def weights_of(form):
    c, o = sum(form.channels), form.out_channels
    pointwise = [torch.randn(o, c)] * form.pointwise
    return [torch.randn(o, c // form.groups, *form.kernel), *pointwise, *[torch.randn(o)] * form.bias]


def chosen(cpu, form, side, pixels=None, element=FLOAT32, method=None):
    core = GroupedCore(form, form.channels if pixels is None else pixels, 0, element)
    return choose_direct_or_winograd(Target(cpu), core, 1, (side, side), lambda _, best, __: best, method)


def test_the_model_chooses_the_method(cpu, monkeypatch):
    """Winograd if products outweigh the transforms. On a map of one 2×2 its weights outweigh both."""
    form = Grouped((512,), 512, (3, 3), padding=AROUND, groups=4, interleaved=True, pointwise=True)
    assert chosen(cpu, form, 14).method == "winograd"
    assert chosen(cpu, form, 14).block % 2 == 0
    assert chosen(cpu, form, 2).method == "direct"
    assert chosen(cpu, form, 2, method="winograd").method == "winograd"
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "direct")
    assert chosen(cpu, form, 14).method == "direct"
    dense = Grouped((128,), 128, (3, 3), padding=AROUND)
    assert chosen(cpu, dense, 14).method == "direct"
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "fewest")
    assert chosen(cpu, form, 14).method == chosen(cpu, dense, 14).method == "winograd"
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "fast")
    with pytest.raises(BadInput, match="'fast'; it may be lean, direct, fewest"):
        chosen(cpu, form, 14)


@pytest.mark.parametrize(
    ("changed", "element", "pixels"),
    [
        ({"stride": (1, 2)}, FLOAT32, None), ({"dilation": (2, 1)}, FLOAT32, None), ({"kernel": (3, 1)}, FLOAT32, None),
        ({"groups": 1}, FLOAT32, None), ({}, BFLOAT16, None), ({}, FLOAT32, ()),
    ],
)  # fmt: skip
def test_when_direct_is_chosen(cpu, changed, element, pixels):
    plain = {"kernel": (3, 3), "groups": 2}
    assert chosen(cpu, Grouped((256,), 256, **plain), 14).method == "winograd"
    assert chosen(cpu, Grouped((256,), 256, **plain | changed), 14, pixels, element).method == "direct"


@torch.no_grad()
def test_a_dense_convolution_by_winograd():
    form = Grouped((12,), 20, (3, 3), padding=AROUND, bias=True)
    weights, x = weights_of(form), torch.randn(2, 12, 9, 14)
    bound = bind(form, weights)
    bound.method = "winograd"
    exact, _ = reference([x.double()], [w.double() for w in weights], form)
    assert_no_worse(bound([x])[0], reference([x], weights, form)[0], exact)
    assert bound.methods == {"winograd"}


def test_tiles_that_fit_the_l1_cache_are_fused(cpu):
    """Groups of few channels are L1-fused; not if all channels are transformed at once, or weights take 64 KiB."""
    form = Grouped((32,), 32, (3, 3), padding=AROUND, groups=4)
    tiles = chosen(cpu, form, 56, method="winograd").tiles
    pixels, block, kept = tiles.inner.pixels, tiles.inner.block, tiles.inner.scratch_stride(8)
    held = 4 * 16 * (pixels * kept + pixels * block + 8 * block)  # 16 transformed inputs, sums and weights of a tile
    assert tiles.l1_fused == (held <= 3 * cpu.l1 // 4)
    assert tiles.l1_fused or cpu is not ZEN4
    assert not chosen(cpu, replace(form, pointwise=True), 56, method="winograd").tiles.l1_fused
    assert not chosen(cpu, replace(form, interleaved=True), 56, method="winograd").tiles.l1_fused
    assert not chosen(cpu, replace(form, channels=(128,), out_channels=128), 56).tiles.l1_fused


@pytest.mark.parametrize("side", [7, 14])
def test_blocks_that_spare_reading_the_weights_again(cpu, side, monkeypatch):
    """512 channels on a small map have 8 MB of transformed weights, which every block of rows reads."""
    form = Grouped((512,), 512, (3, 3), padding=AROUND, groups=4, pointwise=True)
    own, zen3 = (chosen(each, form, side, method="winograd") for each in (cpu, replace(HASWELL, l2=512 << 10)))
    assert zen3.block == 8
    # What one panel of outputs reads stays in the L2 cache: 16 numbers of its group, 4 of all channels.
    assert 4 * math.ceil(side / 2) * 4 * (16 * 128 + 4 * 512) <= 512 << 10
    narrow = chosen(cpu, replace(form, channels=(32,), out_channels=32), 128, method="winograd")
    monkeypatch.setattr(direct_or_winograd, "LARGER", ())
    before = chosen(cpu, form, side, method="winograd")
    assert before.block <= own.block
    assert own.cycles <= before.cycles
    assert chosen(replace(HASWELL, l2=512 << 10), form, side, method="winograd").block == 4
    assert chosen(cpu, replace(form, channels=(32,), out_channels=32), 128, method="winograd") == narrow


def test_blocks_stay_small_where_the_weights_stay_in_the_l2_cache(cpu, monkeypatch):
    """128 channels have 512 KiB of transformed weights: half of a cache of 1 MiB, not of one of 512 KiB."""
    form = Grouped((128,), 128, (3, 3), padding=AROUND, groups=4, pointwise=True)
    large, small = (replace(cpu, l2=size) for size in (1 << 20, 512 << 10))
    found = [chosen(each, form, 28, method="winograd").block for each in (large, small)]
    monkeypatch.setattr(direct_or_winograd, "LARGER", ())
    assert [chosen(each, form, 28, method="winograd").block for each in (large, small)] <= found
    assert chosen(large, form, 28, method="winograd").block == found[0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["hetconv", "wide"])
def test_blocks_of_rows_are_whole_pairs(name, monkeypatch):
    """With two threads, 21 rows are 12 and 9. Another tile may round differently."""
    form = FORMS[name]
    weights, x = weights_of(form), [torch.randn(3, c, 21, 9) for c in form.channels]
    residual = torch.randn(3, form.width, 21, 11) if form.residual else None
    bound = bind(form, weights, Target(ZEN4))
    bound.method = "winograd"
    whole = bound(x, residual)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    step = bound.prepared(
        *[laid_out(t, "channels_last") for t in (*x, residual) if t is not None], *[None] * (residual is None)
    )
    assert step.loop.work.block == 12
    parts = bound(x, residual)
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-4)
    if form.average:
        torch.testing.assert_close(parts[1], whole[1], rtol=1e-5, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pointwise", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_nan_infinity_and_huge_numbers_stay_local(value, pointwise):
    """They reach no further than the 3×3; through the parallel 1×1, the 2×2 around the pixel in other groups."""
    form = Grouped((8,), 8, (3, 3), padding=AROUND, groups=2, pointwise=pointwise)
    weights, bad = weights_of(form), torch.zeros(1, 8, 9, 9)
    bound = bind(form, weights)
    bound.method = "winograd"
    x = torch.randn(1, 8, 9, 9)
    x[0, 0, 4, 5] = value
    y = bound([x])[0]
    bad[0, :4, 3:6, 4:7] = 1
    bad[0, 4:, 4:6, 4:6] = pointwise
    assert torch.equal(~y.isfinite(), bad.bool() & (value != 1e30))
    assert reference([x], weights, form)[0][bad == 0].abs().max() < 100
    finite = bad == 0
    torch.testing.assert_close(y[finite], reference([x], weights, form)[0][finite], rtol=1e-5, atol=1e-5)
