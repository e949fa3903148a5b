"""The separable kernels against float64, over shapes that nobody tuned for."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.errors import BadInput
from leanconv.kernels.cpu import bind
from leanconv.kernels.cpu.bound import separable_builder
from leanconv.kernels.cpu.pipelines.element import BFLOAT16, FLOAT32
from leanconv.ops.separable import Separable, Stencil
from leanconv.ops.separable import separable as reference
from tests.cpus import with_cache
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out, weights_of

pytestmark = pytest.mark.usefixtures("halide")


def check(form, weights, h, w, n, bound, layouts, dtype):
    """Compare one call with float64."""
    inputs = [
        laid_out(torch.randn(n, c, h, w).to(dtype), layouts[i % len(layouts)]) for i, c in enumerate(form.channels)
    ]
    p, q = form.size(h, w)
    residual = laid_out(torch.randn(n, form.width, p, q).to(dtype), layouts[-1]) if form.residual else None
    gate = torch.rand(n, form.middle) if form.gate else None
    before = [x.clone() for x in inputs]
    y, means = bound(inputs, residual, gate)
    wide = [None if t is None else t.double() for t in (residual, gate)]
    exact, exact_means = reference([x.double() for x in inputs], [w.double() for w in weights], form, *wide)
    eager, eager_means = reference(inputs, weights, form, residual, gate)
    assert_no_worse(y, eager, exact, dtype=dtype)
    assert_no_worse(means, eager_means, exact_means, 4.0, dtype)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y.dtype == dtype
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


FORMS = {
    "splconv": Separable(
        (12,),
        ((Stencil(0, 12, (3, 3), padding=(1, 1, 1, 1)),), (Stencil(0, 12, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),)),
        20, bias=True, activation="relu", average=True,
    ),
    "mobilenet": Separable(
        (16,), ((Stencil(0, 16, (3, 3), (2, 2), padding=(1, 1, 1, 1), bias=True, activation="relu6"),),), 32, bias=True,
        residual=True, gate=True,
    ),
    "xsepconv": Separable(
        (5,),
        (
            (Stencil(0, 5, (2, 2), padding=(0, 1, 1, 0), bias=True, activation="relu"),),
            (Stencil(0, 5, (1, 5), (1, 2), padding=(0, 0, 2, 2), bias=True, activation="relu"),),
            (Stencil(0, 5, (5, 1), (2, 1), padding=(2, 2, 0, 0), bias=True),),
        ),
    ),
    "inception": Separable(
        (9, 8),
        ((Stencil(0, 7, identity=True), Stencil(7, 4, (3, 3), padding=(1, 1, 1, 1), bias=True),
          Stencil(11, 3, (1, 5), padding=(0, 0, 2, 2)), Stencil(14, 3, (5, 1), padding=(2, 2, 0, 0))),),
        average=True,
    ),
    "fuseconv": Separable(
        (6,), ((Stencil(0, 6, (1, 3), padding=(0, 0, 1, 1)), Stencil(0, 6, (3, 1), padding=(1, 1, 0, 0))),), 7,
        activation="hardswish",
    ),
    "pointwise": Separable((3, 13), (), 37, bias=True, activation="silu", residual=True, gate=True, average=True),
    "one": Separable((1,), (), 1),
    "shortcut": Separable((18,), ((Stencil(0, 18, identity=True, stride=(2, 2)),),), 24, activation="gelu"),
    "wide": Separable((8,), ((Stencil(0, 8, (7, 7), padding=(3, 3, 3, 3), bias=True),),), 9, activation="relu"),
    "unpadded": Separable((4,), ((Stencil(0, 4, (3, 2), (3, 1), (1, 3), activation="sigmoid"),),), residual=True),
}  # fmt: skip


@pytest.fixture(scope="module", params=[(name, dtype) for name in sorted(FORMS) for dtype in DTYPES], ids=str)
def case(request):
    torch.manual_seed(0)
    form, dtype = FORMS[request.param[0]], request.param[1]
    weights = [w.to(dtype) for w in weights_of(form)]
    return form, weights, bind(form, weights), dtype


@torch.no_grad()
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_size_batch_and_layout(case, data):
    form, weights, bound, dtype = case
    h, w = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    if min(form.size(h, w)) < 1:
        with pytest.raises(BadInput, match="smaller than the kernel"):
            bound([torch.randn(1, c, h, w) for c in form.channels], None, None)
        return
    layouts = data.draw(st.lists(st.sampled_from(["nchw", "channels_last", "slice", "crop"]), min_size=2, max_size=2))
    check(form, weights, h, w, data.draw(st.integers(0, 3)), bound, layouts, dtype)


@torch.no_grad()
@pytest.mark.parametrize("n", [0, 1])
def test_an_empty_map_between_stencils(n):
    """A border could still give it an output; PyTorch refuses it, and so do the kernels."""
    first, second = Stencil(0, 3, (5, 5), (3, 3)), Stencil(0, 3, (3, 3), padding=(2, 2, 2, 2))
    form = Separable((3,), ((first,), (second,)), 4)
    weights, x = weights_of(form), torch.randn(n, 3, 3, 9)
    with pytest.raises(RuntimeError):
        reference([x], weights, form)
    with pytest.raises(BadInput, match="between two stencils"):
        bind(form, weights)([x])


@torch.no_grad()
@pytest.mark.parametrize(
    ("from_memory", "dtype"), [(False, torch.float32), (True, torch.bfloat16), (True, torch.float32)]
)
@pytest.mark.parametrize(("name", "h", "w"), [("splconv", 5, 121), ("wide", 9, 61), ("xsepconv", 8, 115)])
def test_long_rows_and_maps_from_memory(name, h, w, from_memory, dtype):
    """Strips of long rows, maps that are copied pixel by pixel first, and blocks of few rows."""
    form, target = FORMS[name], with_cache(1000) if from_memory else None
    weights = [w.to(dtype) for w in weights_of(form)]
    check(form, weights, h, w, 2, bind(form, weights, target), ["channels_last"] * 2, dtype)


ASKEW = Separable(
    (19,),
    ((Stencil(0, 19, (3, 2), dilation=(2, 3), padding=(3, 0, 1, 2), bias=True, activation="relu"),),),
    21,
    bias=True,
    residual=True,
    gate=True,
)
FEW = Separable((19,), ((Stencil(0, 19, (1, 3), padding=(0, 0, 1, 1)),),), 21)


@torch.no_grad()
@pytest.mark.parametrize("from_memory", [False, True])
@pytest.mark.parametrize("form", [ASKEW, FEW, FORMS["splconv"], FORMS["fuseconv"]], ids=["askew", "few", "two", "both"])
def test_a_map_read_without_a_copy(form, from_memory):
    """Borders on every side, narrow maps and maps that end inside a tile: only the map is read."""
    weights = weights_of(form)
    bound = bind(form, weights, with_cache(100) if from_memory else None)
    for h, w in ((2, 4), (1, 5), (3, 9), (6, 24), (19, 31)):
        if min(form.size(h, w)) > 0:
            check(form, weights, h, w, 2, bound, ["crop", "slice"], torch.float32)


def test_which_maps_are_read_without_a_copy():
    """The kernel copies a map if that is faster, or if the stencil needs a border."""
    reads = separable_builder.KernelBuilder._reads_in_place
    maker = SimpleNamespace(element=FLOAT32)
    square = Stencil(0, 8, (3, 3), padding=(1, 1, 1, 1))
    row = Stencil(0, 8, (1, 3), padding=(0, 0, 1, 1))
    assert reads(maker, square, 3)
    assert reads(maker, row, 3)
    assert not reads(maker, square, 2)
    assert not reads(maker, replace(square, stride=(1, 2)), 9)
    assert not reads(maker, replace(square, kernel=(7, 7), padding=(3, 3, 3, 3)), 30)
    assert not reads(maker, replace(row, padding=(0, 0, 40, 0)), 90)
    assert not reads(maker, Stencil(0, 8, identity=True), 9)
    assert not reads(SimpleNamespace(element=BFLOAT16), square, 9)


@torch.no_grad()
def test_which_maps_are_prefetched():
    """One map, or the maps of a batch, that exceed the cache."""
    x = torch.randn(1, 19, 5, 8)
    bound = bind(FEW, weights_of(FEW), with_cache(x.numel() * 4))

    def prefetched(x):
        return bool(bound.prepared(x.contiguous(memory_format=torch.channels_last), None, None).loop._keep[2])

    assert not prefetched(x)
    assert prefetched(torch.randn(2, 19, 5, 8))
    assert prefetched(torch.randn(1, 19, 10, 8))


@pytest.mark.parametrize("name", ["splconv", "xsepconv", "mobilenet", "unpadded"])
def test_which_rows_are_read(name):
    """Derivatives give the last row of the map that a row of the result depends on."""
    form = replace(FORMS[name], residual=False, gate=False, activation="none")
    form = replace(form, stages=tuple(tuple(replace(s, activation="none") for s in each) for each in form.stages))
    x = torch.randn(1, form.channels[0], 40, 40, dtype=torch.double, requires_grad=True)
    y = reference([x], [w.double() for w in weights_of(form)], form)[0]
    ahead, step = separable_builder._rows_read([each[0] for each in form.stages])
    for row in (3, 7):
        (slope,) = torch.autograd.grad(y[:, :, row].sum(), x, retain_graph=True)
        assert slope[0].abs().amax((0, 2)).nonzero().max() == row * step + ahead


@torch.no_grad()
@pytest.mark.parametrize("w", [43, 52, 60])
def test_many_taps_strided_and_dilated_before_a_projection(w):
    """For these widths Halide cannot infer the pixels of a tile."""
    form = Separable((5,), ((Stencil(0, 5, (5, 5), (2, 2), (2, 2), (4, 4, 4, 4)),),), 7, bias=True)
    weights = weights_of(form)
    check(form, weights, 9, w, 2, bind(form, weights), ["channels_last"], torch.float32)
