"""Activations: NaN and infinity as in PyTorch, and as exact as PyTorch's."""

import pytest
import torch

from leanconv.kernels.cpu import bind
from leanconv.ops.activations import ACTIVATIONS
from leanconv.ops.grouped import Grouped, grouped
from leanconv.ops.pool import MaxPool, max_pool
from leanconv.ops.separable import Separable, Stencil, separable
from leanconv.ops.upsample import Upsample, upsample
from tests.kernels.tolerance import assert_no_worse

pytestmark = pytest.mark.usefixtures("halide")
AROUND = (1, 1, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.008)], ids=str)
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_of_odd_numbers(name, dtype, off):
    numbers = [torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e-30, -3.0, 3.0, 6.0, 7.0, -90.0, 90.0, -300.0, 1e30,
               -1e30, -3e38, -87.0, -88.0, -88.5, -89.0, -95.0, -100.0, -103.9, -104.0, -2e9]  # fmt: skip
    x = torch.tensor(numbers).view(1, 1, 5, 5).to(dtype)
    y, _ = bind(Separable((1,), (), 1, activation=name), [torch.ones(1, 1, dtype=dtype)])([x])
    want = ACTIVATIONS[name](x)
    if name == "gelu":  # PyTorch's own answers to infinities differ between vectors and remainders
        y[..., 0, 1:3] = want[..., 0, 1:3] = 0
    torch.testing.assert_close(y, want, rtol=off, atol=1e-6, equal_nan=True)
    if name in ("silu", "sigmoid"):  # zero far below zero
        torch.testing.assert_close(y[..., 3:, :], want[..., 3:, :], rtol=off, atol=1e-37, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_as_exact_as_pytorchs(name):
    """Near zero, where they bend, and in both tails."""
    bound = bind(Separable((1,), (), 1, activation=name), [torch.ones(1, 1)])
    for low, high in ((-1e-3, 1e-3), (-1.0, 1.0), (-8.0, 8.0), (-30.0, -5.0)):
        x = torch.linspace(low, high, 4096).view(1, 1, 64, 64)
        y, exact = bound([x])[0], ACTIVATIONS[name](x.double())
        if name == "gelu":  # x·(½ + ½ erf): far below zero the sum loses an ulp of ½, whichever erf it is
            off = y - exact
            y = exact + off.sign() * (off.abs() - x.abs() * torch.finfo(torch.float32).eps).clamp(min=0)
        assert_no_worse(y, ACTIVATIONS[name](x), exact)


FORMS = {
    "stencil": (separable, Separable((5,), ((Stencil(0, 5, (3, 3), padding=AROUND, activation="relu6"),),), 7,
                                     activation="relu"), [(5, 1, 3, 3), (7, 5)]),
    "depthwise": (separable, Separable((17,), ((Stencil(0, 17, (7, 7), padding=(3, 3, 3, 3), activation="relu"),),)),
                  [(17, 1, 7, 7)]),
    "grouped": (grouped, Grouped((6,), 4, (3, 3), padding=AROUND, groups=2, inner_activation="relu", project=5,
                                 activation="hardswish"), [(4, 3, 3, 3), (5, 4)]),
    "upsample": (upsample, Upsample((3,), 5, activation="relu"), [(3, 5, 2, 2)]),
    "max_pool": (max_pool, MaxPool(19, (3, 3), (2, 2), AROUND), []),
    "max_pool 2x2": (max_pool, MaxPool(8), []),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1)], ids=str)
@pytest.mark.parametrize("name", sorted(FORMS))
def test_nan_spreads_as_in_pytorch(name, dtype, off):
    torch.manual_seed(0)
    op, form, sizes = FORMS[name]
    c = form.channels if isinstance(form.channels, int) else sum(form.channels)
    weights, x = [torch.randn(size).to(dtype) for size in sizes], torch.randn(2, c, 9, 22).to(dtype)
    x[0, 1, 4, 3], x[1, c - 1, 0, 21], x[1, 0, 8, 0], x[0, 0, 0, 0] = torch.nan, torch.nan, torch.nan, -torch.inf
    call = bind(form, weights)
    if op is max_pool:
        y, want = call(x)[0], op(x, form)[0]
    else:
        y, want = call([x])[0], op([x], weights, form)[0]
    assert want.isnan().any()
    torch.testing.assert_close(y, want, rtol=off, atol=off, equal_nan=True)


@torch.no_grad()
@pytest.mark.parametrize("chain", [(), ((Stencil(0, 5, (3, 3), padding=AROUND),),)], ids=["pointwise", "stencil"])
@pytest.mark.parametrize("bits", [-1, 0x7FFFFFFF, 0x7F800001, -0x800000, 0x7F800000])
def test_a_gate_of_any_bits(bits, chain):
    """A float32 gate on a bfloat16 map: NaNs of every sign and payload, and infinities."""
    form = Separable((5,), chain, 7, gate=True)
    weights = [torch.rand(5, 1, 3, 3).bfloat16()] * len(chain) + [torch.rand(7, 5).bfloat16()]
    x, gate = torch.rand(2, 5, 9, 8).bfloat16(), torch.rand(2, 5)
    gate[1, 3] = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    y, want = bind(form, weights)([x], None, gate)[0], separable([x], weights, form, None, gate)[0]
    assert not want[1].isfinite().any()
    torch.testing.assert_close(y, want, rtol=0.02, atol=0.02, equal_nan=True)
