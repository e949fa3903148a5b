"""The grouped kernels against float64, over shapes that nobody tuned for."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leanconv.kernels.cpu import bind
from leanconv.ops.grouped import Grouped, reference
from tests.kernels.tolerance import DTYPES, assert_no_worse, laid_out

pytestmark = pytest.mark.usefixtures("halide")
AROUND = (1, 1, 1, 1)
FORMS = {
    "hetconv": Grouped((16,), 32, (3, 3), padding=AROUND, groups=4, pointwise=True, bias=True, activation="relu"),
    "shifted": Grouped(
        (15,), 9, (3, 3), (2, 2), (1, 1), AROUND, 3, dealt=True, pointwise=True, bias=True, residual=True, average=True
    ),
    "gwc_pwc": Grouped(
        (7, 5), 12, (3, 3), padding=AROUND, groups=2, bias=True, inner_activation="relu", project=19,
        project_bias=True, activation="silu", residual=True,
    ),
    "spconv": Grouped((6, 6, 4), 40, (3, 3), padding=AROUND, groups=2, pointwise=True, average=True),
    "dealt": Grouped((5, 7), 6, (3, 3), padding=AROUND, groups=3, dealt=True, pointwise=True),
    "dense": Grouped((3,), 13, (5, 2), (1, 2), (1, 3), (0, 2, 3, 1), activation="hardswish"),
    "image": Grouped((4,), 16, (3, 3), (2, 2), padding=AROUND, pointwise=True, bias=True, residual=True, average=True),
    "resnext": Grouped((34,), 17, (3, 3), (2, 1), padding=AROUND, groups=17, bias=True),
}  # fmt: skip


@pytest.fixture(scope="module", params=[(name, dtype) for name in sorted(FORMS) for dtype in DTYPES], ids=str)
def case(request):
    torch.manual_seed(0)
    form, dtype = FORMS[request.param[0]], request.param[1]
    c, o = sum(form.channels), form.out_channels
    weights = [torch.randn(o, c // form.groups, *form.kernel)]
    weights += [torch.randn(o, c, 1, 1)] * form.pointwise + [torch.randn(o)] * form.bias
    if form.project is not None:
        weights += [torch.randn(form.project, o, 1, 1)] + [torch.randn(form.project)] * form.project_bias
    weights = [w.to(dtype) for w in weights]
    return form, weights, bind(form, weights), dtype


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
def test_an_image_is_read_plane_by_plane():
    """Without a copy; as a residual it is brought into the order of a map like any other."""
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
    """Where a tile makes a whole row the taps beside the map are left out."""
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
    """Many blocks of channels and of groups, and a map of four pixels."""
    form = Grouped((256,), 128, (3, 3), padding=AROUND, groups=2, pointwise=True, bias=True)
    weights = [torch.randn(128, 128, 3, 3), torch.randn(128, 256), torch.randn(128)]
    x = torch.randn(5, 256, 2, 2)
    y, _ = bind(form, weights)([x])
    exact, _ = reference([x.double()], [w.double() for w in weights], form)
    assert_no_worse(y, reference([x], weights, form)[0], exact)
