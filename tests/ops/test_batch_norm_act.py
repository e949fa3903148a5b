"""BatchNorm, residual and activation in one operator: its reference, gradients, fake kernel, and errors."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.errors import BadInput
from leanconv.ops import batch_norm_act as ops
from leanconv.ops.activations import ACTIVATIONS

EPS = 1e-3
CASES = [(act, False) for act in ops.KNOWN] + [(act, True) for act in ops.OF_RESIDUALS]


def arguments(added, dtype=torch.float64, affine=True, size=(2, 3, 4, 5)):
    """Map, weight, bias and residual; numbers on both sides of each bend."""
    torch.manual_seed(0)
    x, residual = (2 + 3 * torch.randn(size, dtype=dtype) for _ in range(2))
    weight, bias = (4 * torch.randn(size[1], dtype=dtype) for _ in range(2))
    given = [x, weight if affine else None, bias if affine else None, residual if added else None]
    return [None if each is None else each.requires_grad_() for each in given]


def in_layers(x, weight, bias, residual, act):
    z = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    return ACTIVATIONS[act](z if residual is None else z + residual)


@pytest.mark.parametrize(("act", "added"), CASES)
@pytest.mark.parametrize("affine", [True, False])
def test_the_reference_is_the_layers(act, added, affine):
    given = arguments(added, affine=affine)
    y, statistics = ops.batch_norm_act(*given, act, EPS)
    expected = in_layers(*given, act)
    torch.testing.assert_close(y, expected)
    variance, mean = torch.var_mean(given[0], (0, 2, 3), correction=0)
    torch.testing.assert_close(statistics, torch.stack([mean, variance]))
    leaves, weights = [g for g in given if g is not None], torch.randn(y.shape, dtype=y.dtype)
    found = torch.autograd.grad((y * weights).sum(), leaves)
    for a, b in zip(found, torch.autograd.grad((expected * weights).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("act", "added"), CASES)
def test_gradients_of_both_orders(act, added):
    given = arguments(added, size=(2, 2, 3, 2))
    assert torch.autograd.gradcheck(lambda *a: ops.batch_norm_act(*a, act, EPS)[0], given)
    assert torch.autograd.gradgradcheck(lambda *a: ops.batch_norm_act(*a, act, EPS)[0], given)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("act", "added"), [("silu", False), ("relu", True)])
def test_opcheck(dtype, act, added):
    given = arguments(added, dtype)
    torch.library.opcheck(torch.ops.leanconv.batch_norm_act.default, (*given, act, EPS))
    plain = [None if g is None else g.detach() for g in given]
    y, statistics = ops.result(*plain, act, EPS)
    result = y if ops.keeps_result(plain[3], act) else None
    rest = (*plain[:3], result, statistics, act, EPS)
    torch.library.opcheck(torch.ops.leanconv.batch_norm_act_gradient.default, (torch.randn_like(y), *rest))


def test_what_does_not_fit():
    x, weight, bias, residual = arguments(True)
    with pytest.raises(BadInput, match="of the same size and type"):
        ops.batch_norm_act(x, weight, bias, residual[:1], "relu", EPS)
    with pytest.raises(BadInput, match="as many weights"):
        ops.batch_norm_act(x, weight[:2], bias, None, "relu", EPS)
    with pytest.raises(BadInput, match="more than one number"):
        ops.batch_norm_act(x[:1, :, :1, :1], weight, bias, None, "relu", EPS)
    with pytest.raises(BadInput, match="'gelu' of a norm; known: none, relu"):
        ops.batch_norm_act(x, weight, bias, None, "gelu", EPS)
    with pytest.raises(BadInput, match="'silu' of a norm with a residual"):
        ops.batch_norm_act(x, weight, bias, residual, "silu", EPS)
