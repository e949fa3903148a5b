"""The optimizer follows a swap: groups, hyper-parameters, state, and the way back."""

import copy

import pytest
import torch
from torch import nn

from leanconv.convert import apply_, plan

X = torch.randn(4, 3, 10, 10)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1, bias=False),
    )


def step(model, optimizer):
    optimizer.zero_grad()
    loss = model(X).square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


def named(optimizer, model):
    """The optimizer's groups as lists of parameter names."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names.get(id(p)) for p in group["params"]] for group in optimizer.param_groups]


def test_sgd_with_momentum():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    step(model, optimizer)
    kept = {p: optimizer.state[p]["momentum_buffer"].clone() for p in model[0].parameters()}
    apply_(model, plan(model, X, to="hetconv"), optimizer=optimizer)
    assert named(optimizer, model) == [[name for name, _ in model.named_parameters()]]
    assert set(optimizer.state) == set(kept)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], kept[p]) for p in kept)
    before = copy.deepcopy(model.state_dict())
    losses = [step(model, optimizer) for _ in range(5)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert len(optimizer.state) == len(list(model.parameters()))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)


def test_adamw_with_groups_for_weights_and_biases():
    model = network()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}])
    step(model, optimizer)
    hyper = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    apply_(model, plan(model, X, to="splconv"), optimizer=optimizer)
    groups = named(optimizer, model)
    norm2, norm4 = ["2.norm.weight", "2.norm.bias"], ["4.norm.weight", "4.norm.bias"]
    assert sorted(groups[1]) == sorted(["0.bias", *norm2, "2.plain.bias"])  # layer 2 had a bias in that group
    assert set(norm4) < set(groups[0])  # layer 4 had none: all of it goes where its weight stood
    assert sorted(groups[0] + groups[1]) == sorted(name for name, _ in model.named_parameters())
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == hyper
    step(model, optimizer)
    assert int(optimizer.state[model[0].weight]["step"]) == 2
    assert int(optimizer.state[model[2].plain.weight]["step"]) == 1


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_undo_restores_the_optimizer(name):
    model, twin = network(), network()
    twin.load_state_dict(model.state_dict())
    make = {"SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "AdamW": lambda p: torch.optim.AdamW(p, 0.01)}[name]
    optimizer, expected = make(model.parameters()), make(twin.parameters())
    step(model, optimizer), step(twin, expected)
    applied = apply_(model, plan(model, X, to="hetconv"), optimizer=optimizer)
    for parameter in model.parameters():  # touch the new layers alone
        parameter.requires_grad_(False)
    for parameter in (*model[2].parameters(), *model[4].parameters()):
        parameter.requires_grad_(True)
    step(model, optimizer)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    applied.undo_()
    assert named(optimizer, model) == named(expected, twin)
    assert len(optimizer.state) == len(expected.state)
    step(model, optimizer), step(twin, expected)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_layers_the_optimizer_does_not_train_stay_out():
    model = network()
    optimizer = torch.optim.SGD(model[4].parameters(), 0.1)
    apply_(model, plan(model, X, to="hetconv"), optimizer=optimizer)
    assert named(optimizer, model) == [[f"4.{name}" for name, _ in model[4].named_parameters()]]
    only_bias = network()
    optimizer = torch.optim.SGD([only_bias[2].bias, only_bias[0].weight], 0.1)
    apply_(only_bias, plan(only_bias, X, to="hetconv"), optimizer=optimizer)
    assert named(optimizer, only_bias) == [["0.weight"]]


def test_named_groups_follow():
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), 0.1)
    applied = apply_(model, plan(model, X, to="depthwise_separable"), optimizer=optimizer)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    optimizer.load_state_dict(optimizer.state_dict())
    applied.undo_()
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
