"""Calibration batches: what counts as one, and the harm of a network."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.planner.calibration import Batch, Calibration, divided, read_batches

X = torch.randn(1, 3, 8, 8)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    "data",
    [
        torch.randn(10, 3, 8, 8),
        [torch.randn(4, 3, 8, 8), torch.randn(6, 3, 8, 8)],
        [(torch.randn(5, 3, 8, 8), torch.arange(5))] * 2,
        [[torch.randn(5, 3, 8, 8), torch.arange(5), ["a"] * 5]] * 2,
        (torch.randn(2, 3, 8, 8) for _ in range(5)),
    ],
)
def test_images_in_any_wrapping(data):
    found = read_batches(data, X, 7)
    assert sum(batch.count for batch in found) == sum(len(batch.inputs) for batch in found) == 7
    assert Calibration(network().eval(), found).images == 7


def test_labels_are_cut_with_their_images():
    (batch,) = read_batches([(torch.randn(5, 3, 8, 8), torch.arange(5))], X, 3)
    assert batch.whole[1].tolist() == [0, 1, 2]


def test_named_inputs():
    (batch,) = read_batches([{"x": torch.randn(5, 3, 8, 8), "label": torch.arange(5)}], {"x": X}, 4)
    assert set(batch.inputs) == {"x"}
    assert batch.whole["label"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "no calibration image"),
        (None, "NoneType"),
        ("folder", "str"),
        ({"x": X}, "dict"),
        ([torch.full((2, 3, 8, 8), float("nan"))], "NaN"),
        ([("label",)], "no tensor"),
        ([torch.zeros(0, 3, 8, 8)], "no calibration image"),
        ([torch.randn(3, 8, 8)], r"a batch of data is \(3, 8, 8\), where the model's inputs are \(1, 3, 8, 8\)"),
        ((torch.randn(4, 3, 8, 8), torch.arange(4)), r"is \(4,\), .* such as \[images\] or \[\(images, labels\)\]"),
    ],
)
def test_what_is_no_data(data, words):
    with pytest.raises(BadInput, match=words):
        read_batches(data, X, 8)


def test_another_number_of_channels_is_said():
    with pytest.raises(BadInput, match=r"does not run on inputs \(2, 1, 8, 8\)"):
        Calibration(network().eval(), read_batches([torch.randn(2, 1, 8, 8)], X, 8))


def test_another_size_is_fine_where_the_network_takes_it():
    assert Calibration(network().eval(), read_batches([torch.randn(20, 3, 11, 9)], X, 32)).notes == []


def test_one_picture_is_noted():
    (note,) = Calibration(network().eval(), read_batches([X], X, 8)).notes
    assert "1 image only" in note


def test_a_network_without_outputs_or_with_nan():
    class Nothing(nn.Module):
        def forward(self, x):
            return x.argmax()

    with pytest.raises(BadInput, match="no floating-point tensor"):
        Calibration(Nothing(), read_batches([X], X, 8))
    with pytest.raises(BadInput, match="NaN"):
        Calibration(nn.Sequential(nn.Flatten(0), nn.Threshold(9.0, float("nan"))), read_batches([X], X, 8))


def test_the_harm_of_the_same_network_is_zero_and_of_nan_infinite():
    model = network().eval()
    found = Calibration(model, read_batches([torch.randn(6, 3, 8, 8)], X, 8))
    assert found.harm(model) == 0.0
    with torch.no_grad():
        model[4].bias[0] += 1.0
        assert found.harm(model) > 0.01
        model[4].bias[0] = float("nan")
    assert found.harm(model) == float("inf")


def test_a_loss_needs_labels_and_is_the_rise():
    model, data = network().eval(), [(torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1]))] * 2
    loss = lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1])  # noqa: E731
    found = Calibration(model, read_batches(data, X, 8), loss)
    parts = [data[0], tuple(part[:3] for part in data[1])]
    with torch.no_grad():
        before = [float(loss(model(x), (x, y))) for x, y in parts]
        model[4].weight.zero_()
        model[4].bias.zero_()
    flat = float(torch.log(torch.tensor(3.0)))
    assert found.harm(model) == pytest.approx(flat - (5 * before[0] + 3 * before[1]) / 8, rel=1e-4)


def test_the_mode_stays():
    model = network().train()
    Calibration(model, read_batches([X], X, 8))
    assert model.training


def numbered(*counts):
    at, found = 0, []
    for count in counts:
        found.append(torch.arange(at, at + count).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8))
        at += count
    return read_batches([(images, images[:, 0, 0, 0]) for images in found], X, at)


def of(batches):
    for batch in batches:
        assert batch.count == len(batch.inputs)
        assert torch.equal(batch.inputs[:, 0, 0, 0], batch.whole[1])
    return [int(number) for batch in batches for number in batch.whole[1]]


@pytest.mark.parametrize("counts", [(16,), (5, 4, 7), (1,) * 16, (3, 1, 1, 6, 5)])
def test_every_other_picture_judges(counts):
    fitted, judges = divided(numbered(*counts), 7)
    assert of(fitted) == [*range(0, 14, 2)]
    assert of(judges) == [*range(1, 15, 2)]


@pytest.mark.parametrize(("counts", "images"), [((7, 6), 7), ((3,), 2), ((1,), 9)])
def test_few_pictures_do_both(counts, images):
    fitted, judges = divided(numbered(*counts), images)
    assert of(fitted) == of(judges) == [*range(min(sum(counts), images))]


class Pair(NamedTuple):
    images: torch.Tensor
    label: torch.Tensor


class Holder:
    def __init__(self, images):
        self.images = images


def test_named_tuples_are_divided():
    images = torch.arange(8).float().view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    given = read_batches([(Pair(images, torch.arange(8)),)], (Pair(X, torch.zeros(1)),), 8)
    fitted, judges = divided(given, 4)
    for part, numbers in ((fitted, [0, 2, 4, 6]), (judges, [1, 3, 5, 7])):
        (batch,) = part
        assert batch.count == 4
        assert batch.inputs[0].label.tolist() == batch.inputs[0].images[:, 0, 0, 0].tolist() == numbers


def test_what_cannot_be_cut_does_both():
    batch = Batch((Holder(torch.randn(8, 3, 8, 8)),), None, 8)
    fitted, judges = divided([batch], 8)
    assert fitted is judges
