"""How far outputs are from the original's, against PyTorch's own losses."""

import pytest
import torch
import torch.nn.functional as F

from leanconv.planner.divergence import CLASSES, ERROR, MASKS, Divergence, kind_of
from leanconv.train.distillation.losses import soft_target_loss


def of(kind, *pairs):
    sums = Divergence(kind)
    for new, old in pairs:
        sums.add([new], [old])
    return sums.value


def test_the_kind_of_outputs():
    assert kind_of([torch.zeros(2, 10)]) == CLASSES
    assert kind_of([torch.zeros(2, 3, 4, 4)]) == CLASSES
    assert kind_of([torch.zeros(2, 1, 4, 4)]) == MASKS
    assert kind_of([torch.zeros(2, 1)]) == kind_of([torch.zeros(2, 5, 7)]) == ERROR
    assert kind_of([torch.zeros(2, 10), torch.zeros(2, 10)]) == ERROR


@pytest.mark.parametrize("shape", [(6, 10), (2, 3, 4, 5)])
def test_classes(shape):
    new, old = torch.randn(shape), 3 * torch.randn(shape)
    q, p = (F.log_softmax(t.double().movedim(1, -1).reshape(-1, shape[1]) / 4, 1) for t in (new, old))
    expected = 16 * float(F.kl_div(q, p, reduction="batchmean", log_target=True))
    assert of(CLASSES, (new, old)) == pytest.approx(expected)
    assert of(CLASSES, (old + 7, old)) == pytest.approx(0.0, abs=1e-9)


def test_masks():
    new, old = torch.randn(2, 1, 4, 5), 3 * torch.randn(2, 1, 4, 5)
    both = [torch.cat([t, torch.zeros_like(t)], 1) for t in (new, old)]  # sigmoid is the softmax of (z, 0)
    assert of(MASKS, (new, old)) == pytest.approx(of(CLASSES, tuple(both)), rel=1e-6)


def test_distillation_has_the_same_loss():
    new, old = torch.randn(6, 10), 3 * torch.randn(6, 10)
    assert of(CLASSES, (new, old)) == pytest.approx(float(soft_target_loss(new, old, temperature=4)), rel=1e-6)


def test_batches_are_one_mean():
    new, old = torch.randn(7, 4), torch.randn(7, 4)
    for kind in (CLASSES, ERROR):
        parts = of(kind, (new[:5], old[:5]), (new[5:], old[5:]))
        assert parts == pytest.approx(of(kind, (new, old)))


def test_error_has_no_scale():
    new, old = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    expected = float((new - old).square().sum() / old.square().sum())
    assert of(ERROR, (new, old)) == pytest.approx(expected, rel=1e-6)
    assert of(ERROR, (1e3 * new, 1e3 * old)) == pytest.approx(expected, rel=1e-6)


def test_extreme_logits_stay_finite():
    old = torch.tensor([[[[1e4]]], [[[-1e4]]]])
    assert of(MASKS, (-old, old)) == pytest.approx(4e4)
    assert of(MASKS, (old, old)) == 0.0
