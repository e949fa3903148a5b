"""Layers whose gated sum does the work of their norms: results, gradients, running statistics, and the way back."""

import copy

import pytest
import torch
from torch import nn

from leanconv.kernels.training import available, use_training_kernels_
from leanconv.nn import SPConv2d, SPLConv2d
from tests.kernels.training_cases import with_random_norms

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))
LAYERS = {
    "spconv": lambda: SPConv2d(8, 12, 3, padding=1),
    "one norm": lambda: SPConv2d(8, 12, 3, stride=2, padding=1, inner_norms=1),
    "splconv": lambda: SPLConv2d(8, 12, 3, padding=1),
}


def layer(kind):
    torch.manual_seed(0)
    return with_random_norms(LAYERS[kind]())


def gradients(model, x, autocast=False):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    found = torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])
    return [y.detach(), *found, *(b.clone() for b in model.buffers())]


def fused(model):
    """The layers whose norms pass their maps on."""
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_results_gradients_and_statistics_are_those_of_float64(kind, momentum):
    made, x = layer(kind), torch.randn(3, 8, 9, 11) + 1
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
    plain, exact = copy.deepcopy(made), copy.deepcopy(made).double()
    with use_training_kernels_(made) as kernels:
        assert "" in kernels.layers
        assert fused(made)
        for _ in range(2):
            found, eager, right = gradients(made, x), gradients(plain, x), gradients(exact, x.double())
            for a, b, c in zip(found, eager, right, strict=True):
                allowed = 4 * float((b - c).abs().max()) + 4e-6 * max(1.0, float(c.abs().max()))
                assert float((a - c).abs().max()) <= allowed
    assert not fused(made)
    made.load_state_dict(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(gradients(made, x), gradients(plain, x), strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_eval_mode_and_other_types_are_pytorch_s(kind):
    made, x = layer(kind), torch.randn(3, 8, 9, 11)
    made(x)
    with torch.no_grad():
        expected, exact = made.eval()(x), copy.deepcopy(made).double()(x.double())
        with use_training_kernels_(made):
            torch.testing.assert_close(made(x), expected)
            torch.testing.assert_close(made.double()(x.double()), exact)


@pytest.mark.parametrize("kind", LAYERS)
def test_autocast_is_as_near_to_float32_as_without(kind):
    made, x = layer(kind), torch.randn(3, 8, 9, 11)
    exact, eager = gradients(copy.deepcopy(made), x), gradients(copy.deepcopy(made), x, autocast=True)
    with use_training_kernels_(made):
        found = gradients(made, x, autocast=True)
    for a, b, c in zip(found, eager, exact, strict=True):
        assert a.dtype == b.dtype
        # One pixel's ReLU may decide otherwise: the whole tensor counts.
        assert (a.float() - c).norm() <= 2 * (b.float() - c).norm() + 0.1 * c.float().norm()


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_as_one_graph(kind):
    made, x = layer(kind), torch.randn(3, 8, 9, 11)
    with use_training_kernels_(made):
        other = copy.deepcopy(made)
        eager = gradients(made, x)
        found = gradients(torch.compile(other, fullgraph=True, backend="aot_eager"), x)
    for a, b in zip(eager, found, strict=True):
        torch.testing.assert_close(a, b)


def test_a_copy_trains_its_own_norms():
    made = layer("spconv")
    with use_training_kernels_(made):
        other = copy.deepcopy(made)
        other(torch.randn(2, 8, 5, 5))
        assert int(other.norm1.num_batches_tracked) == 1
        assert int(made.norm1.num_batches_tracked) == 0


def test_a_hook_on_a_norm_sees_what_it_makes():
    made, seen = layer("splconv"), []
    made.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 8, 5, 5)
    with use_training_kernels_(made):
        assert not fused(made)
        made(x)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), made.norm.bias, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_hook_that_comes_later_sees_what_the_norm_makes(kind):
    made, seen = layer(kind), []
    norm = made.norm if kind == "splconv" else made.norm1
    x = torch.randn(2, 8, 5, 5)
    with use_training_kernels_(made):
        without = gradients(made, x)
        hook = norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
        watched = gradients(made, x)
        hook.remove()
        assert fused(made)
    torch.testing.assert_close(seen[0].mean((0, 2, 3)), norm.bias.detach(), atol=1e-5, rtol=1e-4)
    for a, b in zip(without[:2], watched[:2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_norm_that_takes_another_s_place_computes_alone(kind, recompute):
    made, x = layer(kind), torch.randn(2, 8, 9, 11)
    plain = copy.deepcopy(made)
    with use_training_kernels_(made, recompute=recompute):
        for each in (made, plain):
            setattr(each, "norm" if kind == "splconv" else "norm1", nn.GroupNorm(3, 12))
        for a, b in zip(gradients(made, x), gradients(plain, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
