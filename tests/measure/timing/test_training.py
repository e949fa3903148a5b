"""Training steps: what they leave behind, and their peak memory against an analysis by hand."""

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.measure.timing.training import TrainingStep, compare_training
from leanconv.models.unet import unet

X = torch.randn(2, 3, 32, 32)


def test_every_model_in_every_setting():
    models = {"dense": unet(base=4, levels=1), "lean": unet(base=4, levels=1, conv="depthwise_separable")}
    result = compare_training(models, X, settings=("eager", "channels_last"), budget_s=0)
    assert [(s.name, s.setting) for s in result.steps] == [
        ("dense", "eager"),
        ("dense", "channels_last"),
        ("lean", "eager"),
        ("lean", "channels_last"),
    ]
    assert result.steps[0].ratio == 1
    assert all(s.peak_bytes > 0 and s.timing.median_ms > 0 for s in result.steps)
    assert result.to_dict()["steps"][3]["setting"] == "channels_last"
    assert "peak memory" in str(result)


def test_models_and_random_states_are_left_as_they_were():
    model = unet(base=4, levels=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    compare_training({"m": model}, X, budget_s=0, autocast=torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_gives_the_gradients_of_a_plain_step():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    step = TrainingStep(model, X, "channels_last")
    step()
    model.train()(X).square().mean().backward()
    for ours, plain in zip(step.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, plain.grad)


def test_an_input_that_wants_a_gradient_gets_it_and_no_other_does():
    layer, x = nn.Conv2d(3, 4, 3), X.clone().requires_grad_()
    for setting in ("eager", "channels_last"):
        step = TrainingStep(layer, x, setting)
        step()
        step()
        torch.testing.assert_close(step.inputs.grad, torch.autograd.grad(layer(x).square().mean(), x)[0])
    assert x.grad is None
    plain = TrainingStep(layer, X, "eager")
    plain()
    assert plain.inputs.grad is None


def test_peak_memory_is_what_the_step_must_hold():
    side, width = 64, 128
    model = nn.Sequential(*[nn.Sequential(nn.Linear(width, width, bias=False), nn.Sigmoid()) for _ in range(8)])
    step = TrainingStep(model, torch.randn(side * 16, width), "eager")
    step()
    weights, activation = 8 * width * width * 4, side * 16 * width * 4
    # weights, their gradients, momentum; backward keeps each sigmoid's output, one more lives beside it for a moment
    expected = 3 * weights + 8 * activation
    assert expected <= step.peak_bytes() <= expected + 4 * activation


def test_more_activations_need_more_memory():
    def peak(batch):
        step = TrainingStep(unet(base=4, levels=1), torch.randn(batch, 3, 32, 32), "eager")
        step()
        return step.peak_bytes()

    assert 1.7 < peak(4) / peak(2) < 2.1


def test_refusals():
    with pytest.raises(BadInput, match="known: eager"):
        compare_training({"a": nn.Conv2d(3, 3, 1)}, X, settings=("fast",))
    with pytest.raises(BadInput, match="none"):
        compare_training({"a": nn.ReLU()}, X)
    with pytest.raises(BadInput, match="no models"):
        compare_training({}, X)
