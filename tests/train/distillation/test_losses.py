"""The losses against plain NumPy in float64, and what they are where the student is the teacher."""

import numpy as np
import pytest
import torch

from leanconv.errors import BadInput
from leanconv.train.distillation.losses import FLOOR, feature_loss, soft_target_loss


def softmax(z, axis):
    e = np.exp(z - z.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("shape", [(5, 7), (1, 2), (3, 4, 6, 5)])
@pytest.mark.parametrize("t", [1.0, 2.0, 4.0])
def test_soft_targets_are_the_divergence_of_hinton(shape, t):
    s, teacher = torch.randn(shape).double() * 3, torch.randn(shape).double() * 3
    p, q = softmax(teacher.numpy() / t, 1), softmax(s.numpy() / t, 1)
    expected = t**2 * (p * np.log(p / q)).sum(1).mean()
    assert float(soft_target_loss(s, teacher, temperature=t)) == pytest.approx(expected, rel=1e-10)
    assert float(soft_target_loss(s.float(), teacher.float(), temperature=t)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("shape", "activation"), [((4, 1), "auto"), ((2, 1, 6, 5), "auto"), ((2, 3, 6, 5), "sigmoid")])
def test_masks_of_one_logit_have_a_bernoulli_at_each_pixel(shape, activation):
    s, teacher, t = torch.randn(shape).double() * 3, torch.randn(shape).double() * 3, 2.0
    p, q = (1 / (1 + np.exp(-each.numpy() / t)) for each in (teacher, s))
    expected = t**2 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert float(soft_target_loss(s, teacher, temperature=t, activation=activation)) == pytest.approx(expected)


def test_large_logits_stay_finite():
    s, t = torch.tensor([[200.0], [-200.0]]), torch.tensor([[-200.0], [200.0]])
    assert float(soft_target_loss(s, t)) == pytest.approx(200)
    assert float(soft_target_loss(s.expand(2, 2).half() * torch.tensor([1, -1]), t.expand(2, 2))) > 100


def test_the_gradient_of_soft_targets_pulls_towards_the_teacher():
    """At T: T · (softmax(s/T) - softmax(t/T)) / N."""
    s, teacher, t = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.randn(4, 5).double(), 3.0
    soft_target_loss(s, teacher, temperature=t).backward()
    expected = t * ((s / t).softmax(1) - (teacher / t).softmax(1)) / 4
    torch.testing.assert_close(s.grad, expected.detach())


@pytest.mark.parametrize(("shape", "channel"), [((4, 6, 3, 5), 1), ((8, 6), 1), ((2, 7, 6), 2)])
def test_features_are_normalised_channel_by_channel(shape, channel):
    scale = torch.arange(1, 7).double().view([-1 if i == channel else 1 for i in range(len(shape))])
    s, t = torch.randn(shape).double() * scale, torch.randn(shape).double() * scale
    a, b = (np.moveaxis(each.numpy(), channel, 0).reshape(6, -1) for each in (s, t))
    expected = np.mean([((x - y) ** 2).mean() / (y.var() + FLOOR * (b**2).mean()) for x, y in zip(a, b, strict=True)])
    assert float(feature_loss(s, t)) == pytest.approx(expected)
    assert float(feature_loss(7 * s, 7 * t)) == pytest.approx(expected)  # no matter how large the map is


@pytest.mark.parametrize("teacher", [torch.zeros(2, 3, 4, 4), torch.ones(1, 3, 1, 1), torch.randn(1, 3, 1, 1)])
def test_a_feature_without_variance_is_finite(teacher):
    assert float(feature_loss(teacher, teacher)) == 0
    student = (teacher + 0.01).requires_grad_()
    loss = feature_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_equal_models_lose_nothing():
    for shape in ((4, 5), (2, 1, 3, 3), (2, 4, 3, 3)):
        x = torch.randn(shape)
        assert float(soft_target_loss(x, x, temperature=3)) == 0
        assert float(feature_loss(x, x)) == 0


def test_other_shapes_are_named():
    with pytest.raises(BadInput, match=r"the student gives \(2, 5\), the teacher \(2, 6\)"):
        soft_target_loss(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(BadInput, match=r"^layer1: the student gives"):
        feature_loss(torch.zeros(2, 5, 3, 3), torch.zeros(2, 5, 6, 6), name="layer1")
