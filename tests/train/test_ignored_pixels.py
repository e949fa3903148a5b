"""Pixels that masks leave out (`?ignore=255`): no loss, no gradient, no score, no threshold knows them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from leanconv.report.overlays import error_map
from leanconv.train.data.augment import TrainTransform
from leanconv.train.data.masks import IGNORE
from leanconv.train.data.samples import Sample, open_data
from leanconv.train.inference.score import score_run
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.segment import Segmentation
from leanconv.train.tasks.thresholds import threshold_curve


def masks(classes, n=3, h=8, w=10, seed=0):
    rng = torch.Generator().manual_seed(seed)
    found = torch.randint(classes, (n, h, w), generator=rng)
    out = torch.rand((n, h, w), generator=rng) < 0.3
    return found, out


@pytest.mark.parametrize("classes", [2, 4])
def test_the_loss_is_that_of_the_judged_pixels(classes):
    task = Segmentation(tuple("abcd"[:classes]))
    truth, out = masks(classes)
    logits = torch.randn(3, task.outputs, 8, 10, requires_grad=True)
    marked = torch.where(out, IGNORE, truth)
    loss = task.loss(logits, marked)
    if classes > 2:
        expected = F.cross_entropy(logits.movedim(1, 3)[~out], truth[~out])
    else:
        kept, target = logits[:, 0][~out], truth[~out].float()
        p = kept.sigmoid()
        dice = (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
        expected = F.binary_cross_entropy_with_logits(kept, target) + 1 - dice
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.movedim(1, 3)[out].abs().max() == 0
    assert gradient.movedim(1, 3)[~out].abs().max() > 0
    whole = task.loss(logits, truth)
    assert not torch.isclose(whole, loss)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_batch_in_which_nothing_is_judged_costs_nothing(classes):
    task = Segmentation(tuple("abcd"[:classes]))
    logits = torch.randn(2, task.outputs, 4, 4, requires_grad=True)
    loss = task.loss(logits, torch.full((2, 4, 4), IGNORE))
    assert float(loss.detach()) == 0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert not gradient.any()


@pytest.mark.parametrize("classes", [2, 4])
def test_two_processes_have_the_gradient_of_the_joint_batch(classes):
    """Their shares of judged pixels differ: the mean of their own means would be another figure."""
    task = Segmentation(tuple("abcd"[:classes]), ignores=True)
    truth, out = masks(classes, n=4)
    out[:2] |= torch.rand(2, 8, 10) < 0.7
    marked, logits = torch.where(out, IGNORE, truth), torch.randn(4, task.outputs, 8, 10, requires_grad=True)
    (joint,) = torch.autograd.grad(task.loss(logits, marked), logits)
    sums = [[], []]

    def recording(rank):
        return lambda value: sums[rank].append(value.clone()) or value

    shares = [(logits.detach()[:2].requires_grad_(), marked[:2]), (logits.detach()[2:].requires_grad_(), marked[2:])]
    for rank, share in enumerate(shares):  # what each would send
        task.loss(*share, processes=2, total=recording(rank))
    parts = []
    for own, truth in shares:
        totals = iter([a + b for a, b in zip(*sums, strict=True)])
        loss = task.loss(own, truth, processes=2, total=lambda value, totals=totals: next(totals))
        parts.append(torch.autograd.grad(loss, own)[0] / 2)  # gradients are averaged over processes
    torch.testing.assert_close(torch.cat(parts), joint)


class Samples(list):
    def __init__(self, samples, classes):
        super().__init__(samples)
        self.classes = classes


class Red(nn.Module):
    """A logit a pixel: the red channel, as the images of these tests hold it."""

    def __init__(self, outputs=1):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.outputs = outputs

    def forward(self, x):
        red = x[:, :1] * self.scale
        return red if self.outputs == 1 else torch.cat([-red, red, 0 * red], 1)


def example(truth, right):
    """An image on which Red answers `right` (0 or 1)."""
    image = torch.zeros(3, *truth.shape, dtype=torch.uint8)
    image[0] = torch.where(right > 0, 255, 0)
    return Sample(image, truth, "x")


@pytest.mark.parametrize("outputs", [1, 3])
def test_scores_count_the_judged_pixels_alone(outputs):
    truth = torch.zeros(32, 32, dtype=torch.uint8)
    truth[4:12, 4:20] = 1
    answer = truth.clone()
    answer[:, 16:] = 1  # a false alarm on the right side ...
    marked = truth.clone()
    marked[:, 16:] = IGNORE  # ... where nothing is judged
    classes = ("background", "defect") if outputs == 1 else ("background", "defect", "other")
    scores = evaluate(Red(outputs), Samples([example(marked, answer)], classes))
    assert scores.iou == scores.image_iou == 1.0
    assert int(scores.confusion.sum()) == 32 * 16
    whole = evaluate(Red(outputs), Samples([example(truth, answer)], classes))
    assert whole.iou < 0.5


def test_an_image_without_judged_pixels_is_in_no_mean():
    truth = torch.zeros(32, 32, dtype=torch.uint8)
    truth[4:12] = 1
    answer = torch.zeros_like(truth)
    nothing = torch.full_like(truth, IGNORE)
    scores = evaluate(Red(), Samples([example(truth, answer), example(nothing, truth)], ("background", "defect")))
    assert scores.image_iou == scores.image_dice == 0


def test_the_threshold_is_chosen_on_judged_pixels():
    truth = torch.zeros(32, 32, dtype=torch.uint8)
    truth[8:24] = 1
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    image[0] = torch.where(truth > 0, 160, 100)  # logits 0.51 and -0.43: .62 and .39
    image[0, :4] = 255  # what is not judged is the brightest
    marked = truth.clone()
    marked[:4] = IGNORE
    assert threshold_curve(Red(), Samples([Sample(image, marked, "x")], ("a", "b"))).best == 0.5
    assert evaluate(Red(), Samples([Sample(image, marked, "x")], ("a", "b")), threshold=0.5).dice == 1


def test_the_bars_score_and_the_reports_pictures_leave_them_out():
    task = Segmentation(("a", "b"))
    truth = torch.tensor([[[1, IGNORE], [0, IGNORE]]])
    assert float(task.batch_score(torch.tensor([[[[9.0, 9.0], [-9.0, 9.0]]]]), truth)) == pytest.approx(1)
    guess = np.array([[1, 1], [0, 1]], np.uint8)
    assert error_map(guess, truth[0].numpy().astype(np.uint8)).tolist() == [[1, 0], [0, 0]]


def test_crops_are_not_laid_around_them():
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:4, :4] = IGNORE
    mask[60, 60] = 1
    crop = TrainTransform(8, defect_crop=1.0, flips=False, light=0)
    for seed in range(8):
        sample = torch.zeros(3, 64, 64, dtype=torch.uint8), mask
        assert (crop.batch([sample], [seed])[1] == 1).any()


@pytest.mark.parametrize("classes", [2, 3])
def test_a_whole_run_honours_the_option(tmp_path, classes):
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for index in range(3):
            mask = rng.integers(0, classes, (32, 32)).astype(np.uint8)
            mask[10:20] = 255
            Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / f"{index}.png")
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(
                tmp_path / "data" / split / "images" / f"{index}.png"
            )
    ref = f"{tmp_path / 'data'}?classes={classes}&ignore=255&side=24"
    assert (open_data(ref, "train")[0].mask == IGNORE).float().mean() == pytest.approx(10 / 32, abs=0.05)
    outputs = 1 if classes == 2 else 3
    recipe = Recipe(
        model=f"leanconv:unet?base=2&levels=2&out_channels={outputs}",
        data=ref,
        out=str(tmp_path / "run"),
        size=16,
        batch=2,
        steps=2,
        device="cpu",
        threads=1,
        defect_crop=0.5,
    )
    folder = fit(recipe, progress=False)
    assert np.isfinite(float(folder.history.read_text().splitlines()[1].split(",")[2]))
    scores = score_run(folder.path)
    judged = sum(int((sample.mask != IGNORE).sum()) for sample in open_data(ref, "test"))
    assert int(scores.confusion.sum()) == judged
