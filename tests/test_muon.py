"""Muon: matrices are stepped along their singular vectors, all other parameters as by AdamW."""

import copy

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.muon import Muon, orthogonal
from leanconv.train.optimizer import make_optimizer
from leanconv.train.recipe import Recipe


@pytest.mark.parametrize("size", [(5, 5), (3, 17), (17, 3), (1, 4), (4, 1), (64, 576)])
def test_singular_vectors_stay_and_values_meet(size):
    """The iterations against the polynomial of the singular values, in float64."""
    matrix = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    torch.testing.assert_close(orthogonal(matrix), left @ values.diag() @ right)


def test_no_gradient_moves_nothing():
    assert not orthogonal(torch.zeros(4, 3)).any()


def test_a_matrix_moves_as_by_pytorchs_muon():
    """Which iterates in bfloat16, and takes matrices alone."""
    start = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    ours, theirs = nn.Parameter(start.clone().view(12, 5, 2, 2)), nn.Parameter(start.clone())
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    steps = (
        Muon([{"params": [ours], "matrices": True}], **settings),
        torch.optim.Muon([theirs], nesterov=True, adjust_lr_fn="match_rms_adamw", **settings),
    )
    dice = torch.Generator().manual_seed(1)
    for _ in range(4):
        gradient = torch.randn(12, 20, generator=dice)
        ours.grad, theirs.grad = gradient.view(12, 5, 2, 2), gradient
        for each in steps:
            each.step()
    moved = (ours.detach().view(12, 20) - start, theirs.detach() - start)
    assert float((moved[0] - moved[1]).norm() / moved[1].norm()) < 0.02


def test_other_parameters_move_as_by_adamw():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    models = [net, copy.deepcopy(net)]
    for model in models:
        for seed, p in enumerate(model.parameters()):
            torch.manual_seed(seed)
            p.data, p.grad = torch.randn_like(p), torch.randn_like(p)
    for model, optimizer in zip(models, ("muon", "adamw"), strict=True):
        make_optimizer(model, Recipe(steps=1, lr=0.1, optimizer=optimizer, weight_decay=0.1)).step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_filters_of_several_channels_are_the_matrices():
    net = nn.Sequential(
        lc.nn.HetConv2d(8, 8, 3, padding=1, part=4), lc.nn.DepthwiseSeparableConv2d(8, 8, 3, padding=1), nn.Linear(8, 2)
    )
    optimizer = make_optimizer(net, Recipe(steps=1, optimizer="muon", weight_decay=0.1))
    names = {id(p): name for name, p in net.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        if group["matrices"]
        for p in group["params"]
    }
    assert set(found) == {"0.spatial", "0.pointwise", "1.pointwise.weight"}
    assert set(found.values()) == {0.1}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(names)


def test_a_closure_is_called_once_with_gradients():
    p = nn.Parameter(torch.ones(3, 4))
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = p.square().sum()
        loss.backward()
        return loss

    assert Muon([{"params": [p], "matrices": True}], lr=0.1).step(closure).item() == 12.0
    assert calls == [True]
    assert p.grad is not None
    assert not torch.equal(p, torch.ones(3, 4))


def test_complex_parameters_are_stepped_by_adamw():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(4, 6, dtype=torch.complex64))

    model = Net()
    optimizer = make_optimizer(model, Recipe(steps=1, lr=0.1, optimizer="muon"))
    model.weight.grad = torch.full((4, 6), 1 + 2j)
    optimizer.step()
    assert not optimizer.param_groups[0]["matrices"]
    assert model.weight.isfinite().all()


def test_embeddings_and_norms_are_no_filters():
    net = nn.Sequential(nn.Embedding(9, 6), nn.LayerNorm([5, 6]), nn.RMSNorm([5, 6]))
    optimizer = make_optimizer(net, Recipe(steps=1, optimizer="muon"))
    assert not any(group["matrices"] for group in optimizer.param_groups)


def test_a_group_that_is_added_later_is_adamw_s_unless_it_says_so():
    first, second, third = (nn.Parameter(torch.ones(3, 4)) for _ in range(3))
    optimizer = Muon([{"params": [first], "matrices": True}], lr=0.1, momentum=0.5)
    optimizer.add_param_group({"params": [second]})
    optimizer.add_param_group({"params": [third], "matrices": True})
    for p in (first, second, third):
        p.grad = torch.ones(3, 4)
    optimizer.step()
    assert [group["matrices"] for group in optimizer.param_groups] == [True, False, True]
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
