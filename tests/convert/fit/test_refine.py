"""The steps of a fit: the better of before and after is kept; and the norms, which an equal layer leaves alone."""

import copy

import pytest
import torch
from torch import nn

from leanconv.convert.fit.norms import Spread, carry_over_
from leanconv.convert.fit.refine import Example, divided, error, refine_, settle_norms_


def examples(target, count=3, seed=0):
    dice = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(6, 4, 5, 5, generator=dice)
        found.append(Example(((x,), {}), target(x).detach()))
    return found


def test_it_moves_towards_the_target_and_keeps_what_is_better():
    torch.manual_seed(0)
    wanted = nn.Conv2d(4, 4, 3)
    layer = copy.deepcopy(wanted).requires_grad_(False)
    layer.weight.mul_(1 + 0.2 * torch.randn(layer.weight.shape))
    before = error(layer, held := examples(wanted, 1, seed=1))
    assert refine_(layer, list(layer.parameters()), examples(wanted), held, 40)
    assert error(layer, held) < 0.8 * before
    assert not any(p.requires_grad or p.grad is not None for p in layer.parameters())
    kept = copy.deepcopy(layer.state_dict())
    exact = examples(copy.deepcopy(layer), 1, seed=1)
    assert not refine_(layer, list(layer.parameters()), examples(lambda x: -wanted(x)), exact, 5)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in kept.items())


def test_a_module_that_writes_into_its_input_sees_it_as_it_was():
    module, given = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)), examples(lambda x: x)
    copies = [each.arguments[0][0].clone() for each in given]
    refine_(module, list(module.parameters()), given, given, 3)
    assert all(torch.equal(each.arguments[0][0], old) for each, old in zip(given, copies, strict=True))


def test_the_error_is_relative_and_as_norms_behind_see_it():
    (given,) = examples(lambda x: x, 1)
    assert error(lambda x: 0 * x, [given]) == pytest.approx(1)
    assert error(lambda x: x, [given]) == 0
    scales = 1 / torch.tensor([1.0, 2.0, 3.0, 1e6])[: given.target.shape[1]]
    assert error(lambda x: x + 3, [given], scales=scales) == pytest.approx(0, abs=1e-6)
    loud = given.moved(1 / scales, torch.zeros_like(scales))  # which the scales take away
    halved = error(lambda x: 0.5 * x / scales.view(-1, 1, 1), [loud], scales=scales)
    assert halved == pytest.approx(0.5, rel=1e-6)
    assert error(divided(lambda x: x * 0.1, torch.full_like(scales, 0.1)), [given]) == pytest.approx(0, abs=1e-6)
    assert error(lambda x: x + 3, [given]) > 1
    silent = Example(given.arguments, 0 * given.target)
    assert error(lambda x: x, [silent]) == float("inf")
    assert error(lambda x: 0 * x, [silent]) == 0


def test_large_maps_are_taken_in_parts():
    x = torch.zeros(5, 2, 128, 128)
    parts = Example(((x,), {"y": x}), x).parts()
    assert [len(part.target) for part in parts] == [2, 2, 1]
    assert [len(part.arguments[1]["y"]) for part in parts] == [2, 2, 1]
    whole = Example(((x, torch.zeros(3)), {}), x)
    assert whole.parts() == [whole]
    logits = Example(((torch.zeros(20, 3, 224, 224),), {}), torch.zeros(20, 10))
    assert [len(part.target) for part in logits.parts(8)] == [8, 8, 4]


def test_inner_norms_get_the_statistics_of_the_inputs():
    module = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).eval()
    given = examples(lambda x: x, 2)
    x = torch.cat([each.arguments[0][0] for each in given])
    settle_norms_(module, given)
    assert torch.allclose(module[0].running_mean, x.mean((0, 2, 3)), atol=1e-6)
    assert not module[0].training
    assert module[0].momentum == 0.1
    tiny = Example(((torch.zeros(1, 4, 1, 1),), {}), torch.zeros(1, 4, 1, 1))
    settle_norms_(module, [tiny])
    assert torch.equal(module[0].running_var, torch.ones(4))


@pytest.mark.parametrize("factor", [None, 1.0, 0.5])
def test_an_equal_layer_leaves_its_norm_alone(factor):
    """But for the factor that its outputs have."""
    torch.manual_seed(0)
    original = nn.BatchNorm2d(3)
    original.running_mean.normal_()
    original.running_var.uniform_(0.5, 2)
    norm, old, new = copy.deepcopy(original), Spread(), Spread()
    for _ in range(3):
        y = torch.randn(4, 3, 5, 5) + 7
        old.add_(y)
        new.add_(y * (factor or 1.0))
    factors = factor and torch.full((3,), factor)
    carry_over_(norm, original, old, new, factor=factors)
    assert torch.allclose(norm.running_mean, original.running_mean * (factor or 1.0), atol=1e-6)
    eps = original.eps
    var = (original.running_var + eps) * (factor or 1.0) ** 2 - eps
    assert torch.allclose(norm.running_var, var, atol=1e-6)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.allclose(original.eval()(x), norm.eval()(x * (factor or 1.0)), atol=1e-4)
    moved = Spread()
    moved.add_(3 * y + 1)
    single = Spread()
    single.add_(y)
    carry_over_(norm, original, single, moved, factor=factors)
    by, mean = factor or 3.0, y.mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, by * (original.running_mean - mean) + 3 * mean + 1, atol=1e-4)
    assert torch.allclose(norm.running_var, original.running_var * by**2, rtol=1e-4)


def test_the_spread_of_batches_is_that_of_all():
    spread, parts = Spread(), [torch.randn(n, 3, 4, 4) * 0.01 + 1000 for n in (1, 7, 2)]
    for part in parts:
        spread.add_(part)
    whole = torch.cat(parts).double()
    mean, var = spread.found()
    assert torch.allclose(mean, whole.mean((0, 2, 3)))
    assert torch.allclose(var, whole.var((0, 2, 3), correction=0), rtol=1e-6)
