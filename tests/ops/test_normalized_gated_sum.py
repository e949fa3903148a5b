"""Norms, ReLU and gated sum in one operator: its reference, gradient, fake kernel, and errors."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.errors import BadInput
from leanconv.ops import normalized_gated_sum as ops
from leanconv.ops.gated_sum import gated_sum

EPS = [1e-5, 1e-3]


def arguments(dtype=torch.float64, both=True, requires_grad=True, size=(2, 3, 4, 5)):
    torch.manual_seed(0)
    shapes = [size, size, *[size[1:2]] * (4 if both else 2)]
    found = [torch.randn(s, dtype=dtype, requires_grad=requires_grad) for s in shapes]
    return [*found, *([] if both else [None, None])]


def in_layers(a, b, weight, bias, weight_b, bias_b, relu):
    a = F.batch_norm(a, None, None, weight, bias, True, 0.0, EPS[0])
    if weight_b is not None:
        b = F.batch_norm(b, None, None, weight_b, bias_b, True, 0.0, EPS[1])
    return gated_sum(F.relu(a) if relu else a, b)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_the_reference_is_the_layers(both, relu):
    given = arguments(both=both)
    y, gate, statistics = ops.normalized_gated_sum(*given, relu, EPS)
    expected = in_layers(*given, relu)
    torch.testing.assert_close(y, expected)
    assert gate.shape == (2, 3)
    variance, mean = torch.var_mean(given[0], (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics[:2], torch.stack([mean, variance]))
    leaves, weights = [g for g in given if g is not None], torch.randn(y.shape, dtype=y.dtype)
    found = torch.autograd.grad((y * weights).sum(), leaves)
    for a, b in zip(found, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("both", [True, False])
def test_gradient(both, relu):
    assert torch.autograd.gradcheck(lambda *a: ops.normalized_gated_sum(*a, relu, EPS)[0], arguments(both=both))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("both", [True, False])
def test_opcheck(dtype, both):
    given = arguments(dtype, both)
    torch.library.opcheck(torch.ops.leanconv.normalized_gated_sum.default, (*given, True, EPS))
    plain = [None if g is None else g.detach() for g in given]
    y, *kept = ops.result(*plain, True, EPS)
    torch.library.opcheck(torch.ops.leanconv.normalized_gated_sum_gradient.default, (y, *plain, *kept, True, EPS))


def test_what_does_not_fit():
    given = arguments()
    with pytest.raises(BadInput, match="one size and type"):
        ops.normalized_gated_sum(given[0], given[1][:1], *given[2:], True, EPS)
    with pytest.raises(BadInput, match="as many weights"):
        ops.normalized_gated_sum(*given[:2], torch.ones(4), *given[3:], True, EPS)
    with pytest.raises(BadInput, match="more than one number"):
        ops.normalized_gated_sum(*arguments(size=(1, 3, 1, 1)), True, EPS)
