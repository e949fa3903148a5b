"""Equalized blocks compute the same, with maps inside that lose less to one scale."""

import pytest
import torch

from leanconv.engine.fused.quantization.equalize import equalized
from leanconv.engine.fused.quantization.observe import inside
from leanconv.ops.forms import Stencil
from leanconv.ops.separable import Separable, separable


def dw(channels, first=0, **options):
    return Stencil(first, channels, (3, 3), padding=(1, 1, 1, 1), **options)


FORMS = {
    "one": Separable((6,), ((dw(6),),), 5, bias=True),
    "chain": Separable((4, 2), ((dw(6, bias=True),), (dw(6, activation="relu", bias=True),)), 5, activation="relu"),
    "no product": Separable((6,), ((dw(6, activation="relu"),), (dw(6, bias=True),)), activation="silu"),
    "branches": Separable((6,), ((dw(4, bias=True), Stencil(4, 2, identity=True)), (dw(3), dw(5, 1))), 5),
    "a curve between": Separable((6,), ((dw(6, activation="hardswish"),), (dw(6),)), 5, residual=True, gate=True),
    "no stencil": Separable((6,), (), 5),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_block_computes_the_same(name):
    form = FORMS[name]
    torch.manual_seed(0)
    weights, width = [], sum(form.channels)
    for stage in form.stages:
        for s in stage:
            if not s.identity:
                weights += [torch.randn(s.channels, 1, 3, 3, dtype=torch.float64)]
                weights += [torch.randn(s.channels, dtype=torch.float64)] * s.bias
        width = sum(s.channels for s in stage)
    if form.out_channels is not None:
        weights += [torch.randn(5, width, 1, 1, dtype=torch.float64)] + [torch.randn(5).double()] * form.bias
    if form.stages:
        weights[0][0] *= 500  # one large channel
    maps = [torch.randn(2, c, 7, 6, dtype=torch.float64) for c in form.channels]
    residual = torch.randn(2, 5, 7, 6, dtype=torch.float64) if form.residual else None
    gate = torch.rand(2, width, dtype=torch.float64) if form.gate else None
    given = [w.clone() for w in weights]
    sizes = [x.abs().amax((0, 2, 3)) for x in inside(form, weights, [*maps, residual, gate])]
    made = equalized(form, weights, sizes)
    want, have = (separable(maps, each, form, residual, gate)[0] for each in (weights, made))
    torch.testing.assert_close(have, want, rtol=1e-10, atol=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(weights, given, strict=True))
    spread = [x.abs().amax((0, 2, 3)) for x in inside(form, made, [*maps, residual, gate])]
    if name in ("chain", "no product"):
        assert (sizes[0].amax() / sizes[0].amin()) > 50
        torch.testing.assert_close(spread[0], spread[0].amax().expand(6))
    if name == "one":
        torch.testing.assert_close(spread[0] / spread[0].amax(), (sizes[0] / sizes[0].amax()).sqrt())
