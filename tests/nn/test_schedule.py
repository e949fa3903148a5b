"""Schedule against the authors' formulas, and against itself after a kill."""

import json

import pytest
import torch
from torch import nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.nn import LHConv2d, ODConv2d, Schedule


def network(**options):
    options = {"tile_in": 2, "tile_out": 4, "density": 0.1, **options}
    return nn.Sequential(
        LHConv2d(4, 64, 3, 2, 1, **options), nn.ReLU(), LHConv2d(64, 8, 3, 1, 1, **options), ODConv2d(8, 4, 3)
    )


def run(model, schedule, steps, loss=2.0):
    for _ in range(steps):
        model(torch.randn(2, 4, 12, 10))
        schedule.penalty()
        schedule.step(loss)


def test_temperature_falls_by_the_step_over_ten_epochs():
    model = nn.Sequential(ODConv2d(4, 4, 3), ODConv2d(4, 4, 3, temperature=5.0))
    schedule = Schedule(model, steps_per_epoch=3)
    for step in range(40):
        for layer, start in zip(model, (30.0, 5.0)):
            assert layer.temperature == pytest.approx(1 + (start - 1) * max(0, (30 - step) / 30))
        schedule.step(torch.tensor(1.0))
    assert [layer.temperature for layer in model] == [1.0, 1.0]


def test_masks_come_on_filter_by_filter_over_twenty_epochs():
    model = network()
    schedule, shares = Schedule(model, steps_per_epoch=2), []
    for epoch in range(23):
        shares.append(float(model[0].enabled.double().mean()))
        schedule.step(1.0)
        assert float(model[0].enabled.double().mean()) == shares[-1]  # within an epoch they stay
        schedule.step(1.0)
        assert schedule.epoch == epoch + 1
    assert shares[0] == 0
    assert shares[20:] == [1, 1, 1]
    assert all(abs(share - epoch / 20) < 0.25 for epoch, share in enumerate(shares[:20]))


def test_penalty_is_the_formula():
    model = network()
    schedule, losses = Schedule(model, steps_per_epoch=4), [3.0, 2.0, 1.5, 1.1]
    model(torch.randn(2, 4, 12, 10))
    for loss in losses:
        assert schedule.penalty() == 0.0
        schedule.step(torch.tensor(loss))
    scale = sum(losses) / 4 / (0.01 + 0.99 * 0.9)
    for epoch in range(1, 24):
        live = [layer.mask().sum().item() for layer in (model[0], model[2])]
        taps, area = [64 * 4 * 9, 64 * 8 * 9], [6 * 5, 6 * 5]
        f = sum(n * a for n, a in zip(live, area)) / sum(n * a for n, a in zip(taps, area))
        expected = min(epoch, 20) * 4 / 20 * scale * (0.01 * f + 0.99 * abs(0.1 - sum(live) / sum(taps)))
        assert schedule.penalty().item() == pytest.approx(expected, rel=1e-5)
        run(model, schedule, 4)


def test_penalty_weighs_layers_by_their_output():
    model = network()
    schedule = Schedule(model, steps_per_epoch=1)
    model(torch.randn(2, 4, 12, 10))
    schedule.step(1.0)
    model[0].output_area, model[2].output_area = 1, 0
    with pytest.raises(BadInput, match="after the model's forward"):
        schedule.penalty()
    before = None
    for area in (1, 10):
        model[2].output_area = area
        value = schedule.penalty().item()
        assert before != value
        before = value


def test_training_reaches_the_target_density():
    model = network(density=0.2)[:3]
    schedule, optimizer = Schedule(model, steps_per_epoch=4), torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(35 * 4):
        loss = 1e-3 * model(torch.randn(2, 4, 6, 6)).square().mean() + 1 + schedule.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step(loss)
    live = sum(layer.learned_mask().sum().item() for layer in (model[0], model[2]))
    assert live / (64 * 4 * 9 + 64 * 8 * 9) == pytest.approx(0.2, abs=0.06)


def test_the_second_stage_freezes_the_scores():
    model = network()
    schedule = Schedule(model, steps_per_epoch=2, topology_epochs=3)
    run(model, schedule, 5)
    assert schedule.stage == 1
    assert schedule.penalty() > 0
    assert model[0].scores.requires_grad
    run(model, schedule, 1)
    assert schedule.stage == 2
    assert schedule.penalty() == 0.0
    assert not model[0].scores.requires_grad
    assert model[0].weight.requires_grad
    assert model[0].enabled.all()
    assert Schedule(network(), steps_per_epoch=2, topology_epochs=None).stage == 1


@pytest.mark.parametrize("stopped", [0, 2, 3, 11, 25])
def test_resumed_it_goes_on_as_if_nothing_had_been(stopped):
    torch.manual_seed(1)
    model = network()
    schedule = Schedule(model, steps_per_epoch=3, topology_epochs=8, seed=5)
    losses = [0.1 * step + 1 for step in range(30)]
    for loss in losses[:stopped]:
        model(torch.randn(2, 4, 12, 10))
        schedule.step(torch.tensor(loss))
    state = json.loads(json.dumps(schedule.state_dict()))
    other_model = network()
    other_model.load_state_dict(model.state_dict())
    other = Schedule(other_model, steps_per_epoch=3, topology_epochs=8)
    other.load_state_dict(state)
    for loss in losses[stopped:]:
        for a, b in zip(model.modules(), other_model.modules()):
            if isinstance(a, LHConv2d):
                assert torch.equal(a.enabled, b.enabled)
                assert a.scores.requires_grad == b.scores.requires_grad
            if isinstance(a, ODConv2d):
                assert a.temperature == b.temperature
        x = torch.randn(2, 4, 12, 10)
        model(x), other_model(x)
        assert torch.as_tensor(schedule.penalty()).item() == torch.as_tensor(other.penalty()).item()
        schedule.step(torch.tensor(loss))
        other.step(torch.tensor(loss))
    assert schedule.state_dict() == other.state_dict()


def test_without_a_target_there_are_masks_and_no_penalty():
    model = network(density=-1)
    schedule = Schedule(model, steps_per_epoch=1)
    run(model, schedule, 21)
    assert schedule.penalty() == 0.0
    assert model[0].enabled.all()


def test_other_models_are_left_alone():
    model = nn.Conv2d(3, 3, 3)
    schedule = Schedule(model, steps_per_epoch=5)
    for _ in range(12):
        assert schedule.penalty() == 0.0
        schedule.step(torch.tensor(1.0))
    other = Schedule(model, steps_per_epoch=5)
    other.load_state_dict(schedule.state_dict())
    assert other.epoch == 2


def test_bad_input():
    with pytest.raises(BadInput, match="steps_per_epoch=0"):
        Schedule(network(), steps_per_epoch=0)
    with pytest.raises(BadInput, match=r"\[0.1, 0.5\]"):
        Schedule(nn.Sequential(LHConv2d(4, 4, 3), LHConv2d(4, 4, 3, density=0.5)), steps_per_epoch=1)
    schedule = Schedule(network(), steps_per_epoch=1)
    good = {"steps": 1, "seed": 0, "loss_sum": 0.0}
    for state in (
        {},
        {**good, "steps": 1.5},
        {**good, "steps": -1},
        {**good, "loss_sum": float("nan")},
        good | {"x": 1},
    ):
        with pytest.raises(BadCheckpoint, match="not a state of Schedule"):
            schedule.load_state_dict(state)
