"""IoU and Dice of a segmentation model on whole images; with a rule also its defects and verdicts.

Three figures go by the name of IoU, and all three are printed:

- `iou`, `dice`: of the defect class, over all pixels of the set together (large defects weigh most);
- `mean_iou`: the mean over classes, background included, of the same;
- `image_iou`, `image_dice`: of the defect class in each image, then the mean over images.

Which stands beside the SPLConv paper's "Mean IOU" and "Dice"? The paper does not define them. Over all pixels,
Dice = 2·IoU / (1 + IoU) holds for one class exactly; its U-Net prints IoU .6012 and Dice .7139, where that formula
gives .7509. A mean over images falls below it, as here, since the formula is concave. So `image_iou` and `image_dice`
stand beside the paper's.

An image without a defect, where none is predicted either, counts as 1 in the mean over images. Pixels that the masks
leave out (`ignore=` of the data reference) count nowhere.

All of these are of pixels as the thresholds give them. A rule (decision.py) says which of them are reported as defects:
objects.py counts those, and a picture's verdict is right where the same rule fails the mask drawn by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.table import table
from leanconv.train.data.masks import IGNORE
from leanconv.train.tasks import objects
from leanconv.train.tasks.decision import Decision, Rule, Threshold, predicted_classes
from leanconv.train.tasks.images import Total, image_logits


@dataclass(frozen=True)
class Scores:
    """A model's scores on a set of images.

    Attributes:
        classes: names; the first is the background.
        threshold: probability above which a pixel is a class's; None where the largest logit wins.
        names: of the images (with several processes: of this one's, the others' are empty).
        confusion: `N K K` pixel counts of each image, rows = truth, columns = prediction.
        rule: of defects and verdicts; None where only pixels were judged.
        objects: `N K-1 6` counts of the defects of each image, see objects.py.
    """

    classes: tuple[str, ...]
    threshold: Threshold
    names: tuple[str, ...]
    confusion: Tensor
    rule: Rule | None = None
    objects: Tensor | None = None

    @property
    def class_iou(self) -> list[float | None]:
        """IoU of each class over all pixels; None for a class that is neither present nor predicted."""
        inter, union, _ = _areas(self.confusion.sum(0))
        return _ratios(inter, union)

    @property
    def class_dice(self) -> list[float | None]:
        """Dice of each class over all pixels; None for a class that is neither present nor predicted."""
        inter, _, size = _areas(self.confusion.sum(0))
        return _ratios(2 * inter, size)

    @property
    def iou(self) -> float:
        """IoU of the defect class over all pixels; the mean of several defect classes."""
        return _mean(self.class_iou[1:])

    @property
    def dice(self) -> float:
        """Dice of the defect class over all pixels; the mean of several defect classes."""
        return _mean(self.class_dice[1:])

    @property
    def mean_iou(self) -> float:
        """The mean of `class_iou`, background included."""
        return _mean(self.class_iou)

    @property
    def image_ious(self) -> list[float]:
        """IoU of the defect in each image (of several: the mean of those there or predicted); 1 where none is."""
        inter, union, _ = _areas(self.confusion)
        return _per_image(inter[:, 1:], union[:, 1:])

    @property
    def image_dices(self) -> list[float]:
        """Dice of each image, likewise."""
        inter, _, size = _areas(self.confusion)
        return _per_image(2 * inter[:, 1:], size[:, 1:])

    @property
    def image_iou(self) -> float:
        """The mean over images of `image_ious`: beside the paper's "Mean IOU"."""
        return self._over_images(self.image_ious)

    @property
    def image_dice(self) -> float:
        """The mean over images of `image_dices`: beside the paper's "Dice"."""
        return self._over_images(self.image_dices)

    @property
    def class_precision(self) -> list[float | None]:
        """Of the pixels that each class was given, the share that is its; None without any."""
        inter, _, _ = _areas(self.confusion.sum(0))
        return _ratios(inter, self.confusion.sum((0, 1)))

    @property
    def class_recall(self) -> list[float | None]:
        """Of the pixels of each class, the share that it was given; None without any."""
        inter, _, _ = _areas(self.confusion.sum(0))
        return _ratios(inter, self.confusion.sum((0, 2)))

    @property
    def verdicts(self) -> dict[str, int]:
        """Pictures that the rule fails by the mask and by the prediction (`found`), by one of them, or by neither.

        `missed` pictures have a defect and pass; `false_alarms` have none, and fail.
        """
        if self.objects is None or self.rule is None:
            return {}
        told = {"pictures": len(self.objects), "found": 0, "missed": 0, "false_alarms": 0, "passed": 0}
        columns = ((objects.TRUE_MERGED, objects.TRUE_AREA), (objects.REPORTED, objects.REPORTED_AREA))
        for counts in self.objects.tolist():
            bad, failed = (
                bool(self.rule.why_fail([(n, row[i], row[j]) for n, row in zip(self.classes[1:], counts, strict=True)]))
                for i, j in columns
            )
            told[("found" if failed else "missed") if bad else "false_alarms" if failed else "passed"] += 1
        return told

    def _over_images(self, values: list[float]) -> float:
        """The mean over the images in which something was judged."""
        judged = self.confusion.sum((1, 2)).tolist()
        return _mean([value for value, pixels in zip(values, judged, strict=True) if pixels])

    def to_dict(self, *, per_image: bool = False) -> dict[str, Any]:
        """Every figure; with `per_image`, also those of each image."""
        report: dict[str, Any] = {
            "images": len(self.names), "threshold": self._decision.to_dict()["threshold"],
            "iou": self.iou, "dice": self.dice,
            "mean_iou": self.mean_iou, "image_iou": self.image_iou, "image_dice": self.image_dice,
            "classes": {
                name: {"iou": iou, "dice": dice, "precision": precision, "recall": recall}
                for name, iou, dice, precision, recall in zip(
                    self.classes, self.class_iou, self.class_dice, self.class_precision, self.class_recall, strict=True
                )
            },
        }  # fmt: skip
        if self.rule is not None and self.objects is not None:
            each = dict(zip(self.classes[1:], map(objects.summary, self.objects.sum(0)), strict=True))
            report |= self._decision.to_dict()
            report["objects"] = {**objects.summary(self.objects.sum((0, 1))), "classes": each}
            report["verdicts"] = self.verdicts
        if per_image:
            report["per_image"] = [
                {"name": name, "iou": iou, "dice": dice}
                for name, iou, dice in zip(self.names, self.image_ious, self.image_dices, strict=True)
            ]
            if self.objects is not None:
                for picture, counts in zip(report["per_image"], self.objects.sum(1).tolist(), strict=True):
                    picture |= dict(zip(("true", "reported", "matched"), counts[:3], strict=True))
        return report

    @property
    def _decision(self) -> Decision:
        return Decision(self.classes, self.threshold, self.rule or Rule())

    def __str__(self) -> str:
        rows: list[list[object]] = [
            [name, "-" if iou is None else f"{iou:.4f}", "-" if dice is None else f"{dice:.4f}"]
            for name, iou, dice in zip(self.classes, self.class_iou, self.class_dice, strict=True)
        ]
        background, several = self.classes[0], len(self.classes) > 2
        if several:
            rows.append([f"mean over classes without {background}", f"{self.iou:.4f}", f"{self.dice:.4f}"])
        rows.append([f"mean over classes with {background}", f"{self.mean_iou:.4f}", f"{_mean(self.class_dice):.4f}"])
        of = f"mean of all but {background}" if several else self.classes[1]
        rows.append([f"{of} in each image, mean over images", f"{self.image_iou:.4f}", f"{self.image_dice:.4f}"])
        if self.threshold is None:
            chosen = "largest logit"
        else:
            found = self._decision.thresholds
            each = [f"{value:.2f}" if len(found) == 1 else f"{name} {value:.2f}" for name, value in found.items()]
            chosen = f"threshold {', '.join(each)}"
        pixels = table(["class", "IoU", "Dice"], rows, note=f"{len(self.names)} images, {chosen}")
        return pixels if self.objects is None else f"{pixels}\n\n{self._objects_table(self.objects)}"

    def _objects_table(self, counts: Tensor) -> str:
        """The defects as objects, a row a class, and the verdicts below."""
        each = dict(zip(self.classes[1:], counts.sum(0), strict=True))
        if len(each) > 1:
            each["all"] = counts.sum((0, 1))
        rows: list[list[object]] = []
        for name, row in each.items():
            found = objects.summary(row)
            shares = ["-" if found[key] is None else f"{found[key]:.4f}" for key in ("precision", "recall")]
            rows.append([name, found["true"], found["reported"], found["matched"], *shares])
        told, rule = self.verdicts, self.rule or Rule()
        note = (
            f"Defects from {rule.min_area} px, merge {rule.merge} px; matched: IoU of at least {objects.MATCH_IOU:g}. "
            f"Of {told['found'] + told['missed']} pictures that must fail {told['found']} do; of "
            f"{told['passed'] + told['false_alarms']} that must pass {told['passed']} do."
        )
        return table(["defects", "true", "reported", "matched", "precision", "recall"], rows, note=note)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Any,
    *,
    threshold: Threshold = None,
    rule: Rule | None = None,
    batch: int = 8,
    rank: int = 0,
    processes: int = 1,
    total: Total | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Scores:
    """Run the model over whole images and count.

    Args:
        model: `N 3 H W -> N O H W` logits; it runs in eval mode on its own device.
        samples: a data set of `Sample(image, mask, name)` with `.classes`.
        threshold: of all classes, or one of each; of one logit 0.5 by default, of several the largest wins.
        rule: counts the defects too, as objects.
        batch: images of one size that go through the model together, at most.
        rank, processes, total: with several processes each counts its share and `total` sums the counts.
        on_images: called with the number of images done, after each batch.
    Raises: BadInput for an empty data set, a threshold outside 0..1, or a model of another number of classes.
    """
    for each in threshold if isinstance(threshold, tuple) else () if threshold is None else (threshold,):
        if not 0 < each < 1:
            raise BadInput(f"threshold={each}: must lie between 0 and 1")
    if rule is not None:
        rule = rule.chosen(0, 0)
    classes = tuple(samples.classes)
    confusion = torch.zeros(len(samples), len(classes), len(classes), dtype=torch.int64)
    counts = torch.zeros(len(samples), len(classes) - 1, 6, dtype=torch.int64)
    names = [""] * len(samples)
    for group, logits, masks in image_logits(model, samples, batch, rank, processes, on_images):
        if threshold is None and logits.shape[1] == 1:
            threshold = 0.5
        predicted = predicted_classes(logits, threshold)
        for (index, sample), truth, guess in zip(group, masks, predicted, strict=True):
            names[index], confusion[index] = sample.name, _confusion(guess, truth, len(classes))
            if rule is not None:
                pair = guess.cpu().numpy(), truth.cpu().numpy()
                found = objects.count_objects(*pair, len(classes), rule.merge, (rule.min_area,))
                counts[index] = torch.from_numpy(found[0])
    if total is not None and processes > 1:
        confusion, counts = total(confusion), total(counts)
    if rule is None:
        return Scores(classes, threshold, tuple(names), confusion.cpu())
    return Scores(classes, threshold, tuple(names), confusion.cpu(), rule, counts.cpu())


def _confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    judged = truth != IGNORE  # rows = truth, columns = prediction
    pairs = truth[judged].long() * classes + predicted[judged]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu()


def _areas(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`... K K` counts -> intersection, union, and the sum of truth and prediction, each `... K`."""
    inter = confusion.diagonal(dim1=-2, dim2=-1)
    size = confusion.sum(-1) + confusion.sum(-2)
    return inter, size - inter, size


def _per_image(part: Tensor, whole: Tensor) -> list[float]:
    return [_mean(_ratios(*row)) for row in zip(part, whole, strict=True)]


def _ratios(part: Tensor, whole: Tensor) -> list[float | None]:
    return [p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]


def _mean(values: list[Any]) -> float:
    """The mean of what is there; 1 where nothing is: nothing to find, nothing found."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else 1.0
