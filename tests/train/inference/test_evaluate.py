"""IoU and Dice against ten lines of own count, against another implementation, and the rules for empty images."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from leanconv.errors import BadInput
from leanconv.train.data.padding import pad_to
from leanconv.train.tasks.evaluate import Scores, evaluate


class Sample(NamedTuple):
    image: torch.Tensor
    mask: torch.Tensor
    name: str


class Samples(list):
    def __init__(self, samples, classes):
        super().__init__(samples)
        self.classes = classes


class FromImage(nn.Module):
    """Logits that can be read off the image: the channels themselves."""

    size_multiple = 16

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.scale = outputs, nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm2d(3)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        self.norm(x)
        return x[:, : self.outputs] * self.scale


def random_samples(count=7, classes=2, sizes=((17, 30), (40, 24), (5, 3))):
    random = torch.Generator().manual_seed(3)
    names = ("background", "defect", "third")[:classes]

    def one(index):
        h, w = sizes[index % len(sizes)]
        image = torch.randint(0, 256, (3, h, w), generator=random, dtype=torch.uint8)
        return Sample(image, torch.randint(0, classes, (h, w), generator=random, dtype=torch.uint8), f"n{index}")

    return Samples([one(i) for i in range(count)], names)


def own_count(samples, predicted, label):
    """IoU and Dice of a class over all pixels, and the mean of the per-image ones, by sets of pixels."""
    inter = union = size = 0
    ious, dices = [], []
    for (_, mask, _), guess in zip(samples, predicted):
        a = {(y, x) for y, row in enumerate(mask.tolist()) for x, v in enumerate(row) if v == label}
        b = {(y, x) for y, row in enumerate(guess.tolist()) for x, v in enumerate(row) if v == label}
        inter, union, size = inter + len(a & b), union + len(a | b), size + len(a) + len(b)
        ious.append(len(a & b) / len(a | b) if a | b else 1.0)
        dices.append(2 * len(a & b) / (len(a) + len(b)) if a | b else 1.0)
    return inter / union, 2 * inter / size, sum(ious) / len(ious), sum(dices) / len(dices)


def logits_of(sample, outputs):
    return ((sample.image.double() / 255 - 0.5) / 0.25)[:outputs]


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_two_classes_against_the_own_count(threshold):
    samples = random_samples()
    scores = evaluate(FromImage(1), samples, threshold=threshold)
    predicted = [(logits_of(s, 1)[0].sigmoid() >= (threshold or 0.5)).long() for s in samples]
    ours = (scores.iou, scores.dice, scores.image_iou, scores.image_dice)
    assert ours == pytest.approx(own_count(samples, predicted, 1), abs=1e-12)
    assert scores.class_iou[0] == pytest.approx(own_count(samples, predicted, 0)[0], abs=1e-12)
    assert scores.mean_iou == pytest.approx(sum(own_count(samples, predicted, k)[0] for k in (0, 1)) / 2, abs=1e-12)
    assert scores.names == tuple(f"n{i}" for i in range(7))


def test_three_classes_against_the_own_count_and_torchmetrics():
    from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

    samples = random_samples(classes=3)
    scores = evaluate(FromImage(3), samples)
    predicted = [logits_of(s, 3).argmax(0) for s in samples]
    counted = [own_count(samples, predicted, k) for k in range(3)]
    assert scores.class_iou == pytest.approx([c[0] for c in counted], abs=1e-12)
    assert scores.class_dice == pytest.approx([c[1] for c in counted], abs=1e-12)
    assert scores.iou == pytest.approx((counted[1][0] + counted[2][0]) / 2)
    assert scores.threshold is None
    flat = torch.cat([p.flatten() for p in predicted]), torch.cat([s.mask.flatten().long() for s in samples])
    theirs = multiclass_jaccard_index(*flat, num_classes=3, average="none")
    assert scores.class_iou == pytest.approx(theirs.tolist(), abs=1e-6)
    assert scores.mean_iou == pytest.approx(theirs.mean().item(), abs=1e-6)
    f1 = multiclass_f1_score(*flat, num_classes=3, average="none")
    assert scores.class_dice == pytest.approx(f1.tolist(), abs=1e-6)


def test_an_image_without_a_defect():
    def scored(truth, guess):
        confusion = torch.zeros(1, 2, 2, dtype=torch.int64)
        confusion[0, truth, guess] = 9
        return Scores(("background", "defect"), 0.5, ("a",), confusion)

    assert scored(0, 0).image_iou == scored(0, 0).image_dice == scored(0, 0).iou == 1.0
    assert scored(0, 0).class_iou == [1.0, None]
    assert scored(0, 1).image_iou == scored(0, 1).dice == 0.0
    assert scored(1, 0).image_dice == 0.0
    assert scored(1, 1).image_dice == 1.0


def test_the_papers_pair_is_no_dataset_wide_pair():
    """Over all pixels Dice = 2·IoU / (1 + IoU). The paper's U-Net row lies below it, as means over images do."""
    scores = evaluate(FromImage(1), random_samples())
    assert scores.dice == pytest.approx(2 * scores.iou / (1 + scores.iou))
    assert scores.image_dice < 2 * scores.image_iou / (1 + scores.image_iou)
    assert 0.7139 < 2 * 0.6012 / (1 + 0.6012)


def test_sizes_are_padded_and_batch_size_changes_nothing():
    samples, model = random_samples(12), FromImage(1)
    one, many = evaluate(model, samples, batch=1), evaluate(model, samples, batch=5)
    assert torch.equal(one.confusion, many.confusion)
    assert one.names == many.names
    assert {(h % 16, w % 16) for _, _, h, w in model.seen} == {(0, 0)}
    assert max(n for n, *_ in model.seen) == 4  # 12 images of three sizes, four each


def test_padding_mirrors():
    x = torch.arange(6.0).view(1, 1, 2, 3)
    assert pad_to(x, 4).shape == (1, 1, 4, 4)
    assert pad_to(x, 1) is x
    grown = pad_to(torch.arange(20.0).view(1, 1, 4, 5), 8)[0, 0]
    assert grown[4].tolist() == [10, 11, 12, 13, 14, 13, 12, 11]


def test_the_model_is_left_as_it_was():
    model = FromImage(1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, random_samples())
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_processes_share_the_images():
    samples, model = random_samples(), FromImage(1)
    parts = [evaluate(model, samples, rank=r, processes=3).confusion for r in range(3)]
    assert torch.equal(sum(parts), evaluate(model, samples).confusion)


def test_refusals():
    with pytest.raises(BadInput, match=r"threshold=1\.5"):
        evaluate(FromImage(1), random_samples(), threshold=1.5)
    with pytest.raises(BadInput, match="no images"):
        evaluate(FromImage(1), Samples([], ("background", "defect")))
    with pytest.raises(BadInput, match="gives 3 classes, the data has 2"):
        evaluate(FromImage(3), random_samples())


def test_the_report_says_every_figure():
    scores = evaluate(FromImage(1), random_samples())
    report = scores.to_dict(per_image=True)
    assert len(report["per_image"]) == report["images"] == 7
    assert f"{scores.image_dice:.4f}" in str(scores)
    assert "threshold 0.50" in str(scores)


def test_each_row_of_the_table_is_what_it_says():
    """The rows' names against sums by hand: with the background or without it, over pixels or over images."""
    confusion = torch.zeros(2, 3, 3, dtype=torch.int64)
    confusion[0] = torch.tensor([[50, 10, 0], [5, 20, 5], [0, 0, 10]])
    confusion[1] = torch.tensor([[80, 0, 0], [10, 10, 0], [0, 0, 0]])
    scores = Scores(("copper", "scratch", "pit"), None, ("a", "b"), confusion)

    def cells(text):
        return {line.rsplit("  ", 2)[0].strip(): line.split()[-2:] for line in text.splitlines()}

    ious = [130 / 155, 30 / 60, 10 / 15]
    dices = [2 * 130 / 285, 2 * 30 / 90, 2 * 10 / 25]
    rows = cells(str(scores))
    for name, iou, dice in zip(("copper", "scratch", "pit"), ious, dices, strict=True):
        assert rows[name] == [f"{iou:.4f}", f"{dice:.4f}"]
    assert rows["mean over classes with copper"] == [f"{sum(ious) / 3:.4f}", f"{sum(dices) / 3:.4f}"]
    assert rows["mean over classes without copper"] == [f"{sum(ious[1:]) / 2:.4f}", f"{sum(dices[1:]) / 2:.4f}"]
    image = [(20 / 40 + 10 / 15) / 2, 10 / 20]
    assert rows["mean of all but copper in each image, mean over images"][0] == f"{sum(image) / 2:.4f}"
    two = Scores(("copper", "scratch"), 0.4, ("a", "b"), confusion[:, :2, :2])
    rows = cells(str(two))
    assert not any("without" in name for name in rows)
    assert rows["scratch in each image, mean over images"][0] == f"{(20 / 35 + 10 / 20) / 2:.4f}"
    assert "threshold 0.40" in str(two)


def test_thresholds_for_several_logits():
    """One for all, or one each: a pixel has its most probable class but the background, where that reaches its own."""
    samples = random_samples(classes=3)
    for threshold in (0.4, (0.35, 0.6)):
        scores = evaluate(FromImage(3), samples, threshold=threshold)
        least = threshold if isinstance(threshold, tuple) else (threshold,) * 2
        predicted = []
        for sample in samples:
            p = logits_of(sample, 3).softmax(0).tolist()
            h, w = sample.mask.shape
            rows = [[[p[k][y][x] for k in range(3)] for x in range(w)] for y in range(h)]
            best = [[max((1, 2), key=lambda k: each[k]) for each in row] for row in rows]
            predicted.append(
                torch.tensor(
                    [[k if each[k] >= least[k - 1] else 0 for each, k in zip(*pair)] for pair in zip(rows, best)]
                )
            )
        counted = [own_count(samples, predicted, k) for k in range(3)]
        assert scores.class_iou == pytest.approx([c[0] for c in counted], abs=1e-12)
        assert scores.threshold == threshold
    assert scores.to_dict()["threshold"] is None
    assert "threshold defect 0.35, third 0.60" in str(scores)
    with pytest.raises(BadInput, match="3 thresholds for 2 classes"):
        evaluate(FromImage(3), samples, threshold=(0.1, 0.2, 0.3))
    with pytest.raises(BadInput, match="must lie between 0 and 1"):
        evaluate(FromImage(3), samples, threshold=(0.1, 1.0))


def test_precision_and_recall_of_the_pixels():
    confusion = torch.tensor([[[50, 10, 0], [5, 20, 5], [0, 0, 0]]])
    scores = Scores(("copper", "scratch", "pit"), None, ("a",), confusion)
    assert scores.class_precision == [50 / 55, 20 / 30, 0.0]
    assert scores.class_recall == [50 / 60, 20 / 30, None]
    assert scores.to_dict()["classes"]["pit"] == {"iou": 0.0, "dice": 0.0, "precision": 0.0, "recall": None}
