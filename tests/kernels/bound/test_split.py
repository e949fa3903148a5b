"""Both passes of SPConv and SPLConv in one call, against float64; and the gates' own exponential."""

import pytest
import torch

from leanconv.errors import BadInput
from leanconv.kernels.cpu import bind, bind_split
from leanconv.ops import gated_sum, grouped, separable
from leanconv.ops.gated_sum import GatedSum
from leanconv.ops.grouped import Grouped
from leanconv.ops.separable import Separable, Stencil
from tests.cpus import with_cache
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out, weights_of

pytestmark = pytest.mark.usefixtures("halide")
LARGE = Separable(
    (12,),
    ((Stencil(0, 12, (3, 3), padding=(1, 1, 1, 1)),), (Stencil(0, 12, (3, 3), (1, 1), (2, 2), (2, 2, 2, 2)),)),
    20,
    bias=True,
    activation="relu",
    average=True,
)
MIXED = Grouped((12,), 20, (3, 3), padding=(1, 1, 1, 1), groups=4, bias=True, pointwise=True, average=True)
BLEND = GatedSum((7,), 20, bias=True, affine=True, activation="relu", average=True)


def passes(form):
    """Weights of both, and their references one after the other."""
    torch.manual_seed(0)
    own = (
        weights_of(form)
        if isinstance(form, Separable)
        else [torch.randn(20, 3, 3, 3), torch.randn(20, 12, 1, 1), torch.randn(20)]
    )
    return own, [torch.randn(20, 7) / 7, *torch.randn(3, 20)]


def composed(x, form, weights, others):
    room = separable if isinstance(form, Separable) else grouped
    a, average = room.reference([x[:, :12]], weights, form)
    return gated_sum.reference(a, [x[:, 12:]], others, BLEND, average)


@torch.no_grad()
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [LARGE, MIXED], ids=["splconv", "spconv"])
def test_any_size_batch_and_layout(form, dtype, blocks):
    """Sizes at which the result lies where the first pass's did, and such at which it cannot."""
    weights, others = ([w.to(dtype) for w in each] for each in passes(form))
    cpu = with_cache(20000) if blocks else None
    bound, placed = bind_split(form, weights, BLEND, others, cpu), set()
    for n, h, w, layout in [(0, 5, 5, "nchw"), (2, 16, 24, "slice"), (1, 29, 1, "crop"), (3, 8, 16, "nchw")]:
        x = laid_out(torch.randn(n, 19, h, w).to(dtype), layout)
        before = x.clone()
        y, means = bound(x)
        again = bound(x)[0]
        exact, exact_means = composed(x.double(), form, *[[w.double() for w in each] for each in (weights, others)])
        eager, eager_means = composed(x, form, weights, others)
        assert_no_worse(y, eager, exact, 4.0, dtype)
        assert_no_worse(means, eager_means, exact_means, 4.0, dtype)
        assert torch.equal(x, before)
        assert torch.equal(y, again)
        assert y.dtype == dtype
        if n and layout != "nchw":
            placed.add(bound.step(x)._in_place)
    assert placed == {True, False}


@torch.no_grad()
def test_two_threads_make_what_one_makes(two_threads):
    weights, others = passes(LARGE)
    bound, x = bind_split(LARGE, weights, BLEND, others), torch.randn(3, 19, 40, 24)
    for a, b in zip(bound(x), two_threads(bound, x), strict=True):
        torch.testing.assert_close(a, b)


def factors(gated, first, second):
    out = torch.empty(len(first), 3, first.shape[1])
    gated.gates(first, [second.contiguous()], out)()
    return out


def test_gates_of_any_average():
    """1/(1 + e^(b - a)) in float64, at both ends, in between, and where there is no number."""
    a = torch.cat([torch.linspace(-110, 110, 4001), torch.tensor([3e38, -3e38, torch.inf, -torch.inf, torch.nan])])
    gated = bind(GatedSum((1,), len(a)), [torch.zeros(len(a), 1)])
    first, second, third = factors(gated, a[None], torch.zeros(1, 1))[0]
    exact = torch.sigmoid(a.double())
    torch.testing.assert_close(first.double(), exact, rtol=4e-7, atol=1e-37, equal_nan=True)
    torch.testing.assert_close(second.double(), 1 - exact, rtol=0, atol=2e-7, equal_nan=True)
    assert not third[:-1].any()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Separable((4,), (), 8), GatedSum((4,), 8)),
        (Separable((4, 4), (), 8, average=True), GatedSum((4,), 8)),
        (Separable((4,), (), 8, residual=True, average=True), GatedSum((4,), 8)),
        (Separable((4,), (), 8, average=True), GatedSum((4,), 9)),
        (Separable((4,), (), 8, average=True), GatedSum((4, 4), 8)),
    ],
    ids=["no average", "two inputs", "residual", "widths", "two pieces"],
)
def test_passes_that_do_not_fit(first, second):
    weights = [torch.randn(second.out_channels, sum(second.channels))]
    with pytest.raises(BadInput, match=r"needed|fit together"):
        bind_split(first, weights_of(first), second, weights)


def test_maps_that_do_not_fit():
    weights, others = passes(LARGE)
    with pytest.raises(BadInput, match="channels"):
        bind_split(LARGE, weights, BLEND, others)(torch.randn(1, 18, 5, 5))
    half = Separable((12,), ((Stencil(0, 12, (3, 3), (2, 2), padding=(1, 1, 1, 1)),),), 20, average=True)
    with pytest.raises(BadInput, match="maps of"):
        bind_split(half, weights_of(half), BLEND, others)(torch.randn(1, 19, 6, 6))
