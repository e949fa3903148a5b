"""Launches as the engine makes them: SPConv and SPLConv in one batch, against float64; the gates' own exponential."""

from pathlib import Path

import pytest
import torch

import leanconv
from leanconv.kernels import backend
from leanconv.ops.forms import averaged
from leanconv.ops.gated_sum import GatedSum, gated_pointwise
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.separable import Separable, Stencil, separable
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
    """Weights of both passes."""
    torch.manual_seed(0)
    spatial = [torch.randn(20, 3, 3, 3), torch.randn(20, 12, 1, 1), torch.randn(20)]
    return weights_of(form) if isinstance(form, Separable) else spatial, [torch.randn(20, 7) / 7, *torch.randn(3, 20)]


def composed(x, form, weights, others):
    """Both references, one after the other."""
    a, average = (separable if isinstance(form, Separable) else grouped)([x[:, :12]], weights, form)
    return gated_pointwise(a, [x[:, 12:]], others, BLEND, average)


def test_the_door_is_the_only_way_in():
    """Nothing outside `kernels` knows what is behind `kernels.cpu`: another device is another folder beside it."""
    root = Path(leanconv.__file__).parent
    outside = [path for path in root.rglob("*.py") if path.relative_to(root).parts[0] != "kernels"]
    assert not [path.name for path in outside if "kernels.cpu" in path.read_text()]


def result_of(prepared):
    return torch.full(prepared.size, torch.nan, dtype=prepared.dtype).as_strided(prepared.size, prepared.strides)


class Layer:
    """Both passes as a plan has them: one batch, the result in the memory of the first pass's where that fits."""

    def __init__(self, form, weights, others, target=None):
        self.first, self.blend = backend().bind(form, weights, target), backend().bind(BLEND, others, target)
        self.none = [None] * (2 if isinstance(form, Separable) else 1)

    def __call__(self, x):
        own, rest = x[:, :12], x[:, 12:]
        first = self.first.prepare(own, *self.none)
        a, average = result_of(first), torch.empty(first.size[:2])
        blend = self.blend.prepare_in_place(a, rest)
        self.in_place = blend is not None
        blend = blend or self.blend.prepare(a, rest)
        y, means = a if self.in_place else result_of(blend), torch.empty(blend.size[:2])
        launches = [first.launch(), blend.launch([average, averaged(rest)])]
        for launch, operands in zip(launches, [(own, a, average), (a, rest, y, means)], strict=True):
            for index, tensor in enumerate(operands):
                launch.put(index, tensor)
        backend().batch(launches)()
        return y, means


@torch.no_grad()
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", [LARGE, MIXED], ids=["splconv", "spconv"])
def test_any_size_batch_and_layout(form, dtype, blocks):
    """Sizes at which the result lies where the first pass's did, and sizes at which it cannot."""
    weights, others = ([w.to(dtype) for w in each] for each in passes(form))
    layer, placed = Layer(form, weights, others, with_cache(20000) if blocks else None), set()
    for n, h, w, layout in [(2, 16, 24, "slice"), (1, 29, 1, "channels_last"), (3, 8, 16, "channels_last")]:
        x = laid_out(torch.randn(n, 19, h, w).to(dtype), layout)
        before = x.clone()
        y, means = layer(x)
        exact, exact_means = composed(x.double(), form, *[[w.double() for w in each] for each in (weights, others)])
        eager, eager_means = composed(x, form, weights, others)
        assert_no_worse(y, eager, exact, 4.0, dtype)
        assert_no_worse(means, eager_means, exact_means, 4.0, dtype)
        assert torch.equal(layer(x)[0], y)
        assert torch.equal(x, before)
        placed.add(layer.in_place)
    assert placed == {True, False}


@torch.no_grad()
def test_two_threads_compute_what_one_does(two_threads):
    layer = Layer(LARGE, *passes(LARGE))
    x = torch.randn(3, 19, 40, 24).contiguous(memory_format=torch.channels_last)
    for a, b in zip(layer(x), two_threads(layer, x), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_a_launch_takes_the_seconds_of_its_gates_too():
    blend = backend().bind(BLEND, passes(LARGE)[1])
    a, x = (torch.randn(1, c, 30, 30).contiguous(memory_format=torch.channels_last) for c in (20, 7))
    prepared = blend.prepare(a, x)
    launches = [prepared.launch([averaged(a), averaged(x)]) for _ in range(2)]
    operands = a, x, result_of(prepared), torch.empty(1, 20)
    for launch in launches:
        for index, tensor in enumerate(operands):
            launch.put(index, tensor)
    seconds = backend().batch(launches).timed()
    assert len(seconds) == 2
    assert all(each > 0 for each in seconds)


@torch.no_grad()
def test_maps_that_would_be_copied_are_not_launched():
    bound = backend().bind(LARGE, passes(LARGE)[0])
    x = torch.randn(1, 12, 9, 8)
    assert bound.prepare(x, None, None) is None
    assert bound.prepare(x.contiguous(memory_format=torch.channels_last), None, None) is not None
    assert bound.prepare_in_place(x, None, None) is None


def factors(gated, first, second):
    out = torch.empty(len(first), 3, first.shape[1])
    gated.gates([first, second.contiguous()], out)()
    return out


def test_gates_of_any_average():
    """1/(1 + e^(b - a)) in float64, at both ends, in between, and where there is no number."""
    a = torch.cat([torch.linspace(-110, 110, 4001), torch.tensor([3e38, -3e38, torch.inf, -torch.inf, torch.nan])])
    gated = backend().bind(GatedSum((1,), len(a)), [torch.zeros(len(a), 1)])
    first, second, third = factors(gated, a[None], torch.zeros(1, 1))[0]
    exact = torch.sigmoid(a.double())
    torch.testing.assert_close(first.double(), exact, rtol=4e-7, atol=1e-37, equal_nan=True)
    torch.testing.assert_close(second.double(), 1 - exact, rtol=0, atol=2e-7, equal_nan=True)
    assert not third[:-1].any()
