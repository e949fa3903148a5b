"""The curve over thresholds against evaluations at each of them, class by class."""

import pytest
import torch
from torch import nn

from leanconv.train.data.masks import IGNORE
from leanconv.train.data.samples import Sample
from leanconv.train.tasks.evaluate import evaluate
from leanconv.train.tasks.thresholds import GRID, threshold_curve


class FromImage(nn.Module):
    """Logits that can be read off the image: the channels themselves."""

    size_multiple = 4

    def __init__(self, outputs):
        super().__init__()
        self.outputs, self.scale = outputs, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x[:, : self.outputs] * self.scale


class Set(list):
    def __init__(self, samples, classes):
        super().__init__(samples)
        self.classes = classes


def samples_of(classes):
    random = torch.Generator().manual_seed(5)

    def one(h, w):
        image = torch.randint(0, 256, (3, h, w), generator=random, dtype=torch.uint8)
        mask = (image[1] > 140).to(torch.uint8) * (1 + (image[2] > 120).to(torch.uint8) * (classes > 2))
        mask[torch.rand(h, w, generator=random) < 0.1] = IGNORE
        mask[torch.rand(h, w, generator=random) < 0.1] = 0
        return Sample(image, mask, f"{h}x{w}")

    return Set([one(17, 30), one(24, 24), one(5, 3)], ("background", "scratch", "pit")[:classes])


@pytest.mark.parametrize(("outputs", "classes"), [(1, 2), (2, 2), (3, 3)])
def test_the_curve_is_what_evaluation_gives_at_each_threshold(outputs, classes):
    samples, model = samples_of(classes), FromImage(outputs)
    curve = threshold_curve(model, samples)
    told = curve.to_dict()
    assert told["thresholds"] == list(GRID)
    for place in range(0, len(GRID), 9):
        scores = evaluate(model, samples, threshold=GRID[place]).to_dict()["classes"]
        for name in samples.classes[1:]:
            found = {key: values[place] for key, values in told["classes"][name].items()}
            expected = {key: scores[name][key] for key in ("dice", "precision", "recall")}
            expected["dice"] = expected["dice"] or 0.0
            assert found == pytest.approx(expected, abs=1e-5)


def test_each_classs_best_is_the_best_of_its_own():
    samples, model = samples_of(3), FromImage(3)
    best = threshold_curve(model, samples).best
    dices = {t: evaluate(model, samples, threshold=t).class_dice for t in GRID}
    for k, chosen in enumerate(best, 1):
        assert dices[chosen][k] == max(each[k] or 0 for each in dices.values())
    together = evaluate(model, samples, threshold=best)
    assert together.class_dice[1:] == [dices[chosen][k] for k, chosen in enumerate(best, 1)]
    assert together.dice > evaluate(model, samples, threshold=0.9).dice


def test_two_classes_have_one_threshold():
    samples = samples_of(2)
    samples[:] = [s._replace(mask=(s.image[0] > 170).to(torch.uint8)) for s in samples]
    model = FromImage(1)
    dices = {t: evaluate(model, samples, threshold=t).dice for t in GRID}
    chosen = threshold_curve(model, samples).best
    assert dices[chosen] == max(dices.values()) > dices[0.5]


def test_a_class_that_was_not_learnt_is_named():
    samples = samples_of(3)
    for sample in samples:  # scratches can be seen in channel 1, pits nowhere
        pits = (sample.mask == 1) & (torch.rand(sample.mask.shape, generator=torch.Generator().manual_seed(1)) < 0.2)
        sample.mask[sample.mask == 2] = 0
        sample.mask[pits] = 2
    curve = threshold_curve(FromImage(3), samples)
    rare = int(curve.true[1])
    everywhere = 2 * rare / (rare + curve.pixels)  # the Dice of marking every pixel
    assert float(curve.dice[1].max()) < everywhere + 0.1
    assert "pit (Dice" in curve.not_learnt()
    assert "scratch" not in curve.not_learnt()


def test_what_was_learnt_is_not_named():
    samples = samples_of(2)
    samples[:] = [s._replace(mask=(s.image[0] > 170).to(torch.uint8)) for s in samples]
    assert threshold_curve(FromImage(1), samples).not_learnt() == ""


def test_a_class_that_is_not_there_keeps_a_half():
    samples = samples_of(2)
    samples.classes = ("background", "scratch", "pit")
    curve = threshold_curve(FromImage(3), samples)
    assert curve.best[1] == 0.5
    assert curve.to_dict()["classes"]["pit"]["recall"] == [None] * len(GRID)


def test_shares_of_the_processes_add_up():
    samples, model = samples_of(3), FromImage(3)
    whole = threshold_curve(model, samples)
    parts = [threshold_curve(model, samples, rank=rank, processes=2) for rank in (0, 1)]
    assert torch.equal(sum(part.hits for part in parts), whole.hits)
    assert torch.equal(sum(part.true for part in parts), whole.true)
