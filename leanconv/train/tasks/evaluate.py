"""IoU and Dice of a segmentation model on whole images.

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
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.running import evaluating
from leanconv.table import table
from leanconv.train.data.augment import to_float
from leanconv.train.data.masks import IGNORE
from leanconv.train.data.padding import pad_to

Total = Callable[[Tensor], Tensor]
Group = list[tuple[int, Any]]  # images of one size: index and sample

# The candidates of `best_threshold`.
GRID = tuple(i / 100 for i in range(5, 96))
# The most pixels of a batch of whole images: 1 Mpx of a base-32 U-Net takes 1 GB.
BATCH_PIXELS = 1 << 20
# The most pixels of images that wait for others of their size: 256 MB with their masks.
HELD_PIXELS = 1 << 26


@dataclass(frozen=True)
class Scores:
    """A model's scores on a set of images.

    Attributes:
        classes: names; the first is the background.
        threshold: probability above which a pixel is a defect; None where the largest logit wins.
        names: of the images (with several processes: of this one's, the others' are empty).
        confusion: `N K K` pixel counts of each image, rows = truth, columns = prediction.
    """

    classes: tuple[str, ...]
    threshold: float | None
    names: tuple[str, ...]
    confusion: Tensor

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

    def _over_images(self, values: list[float]) -> float:
        """The mean over the images in which something was judged."""
        judged = self.confusion.sum((1, 2)).tolist()
        return _mean([value for value, pixels in zip(values, judged, strict=True) if pixels])

    def to_dict(self, *, per_image: bool = False) -> dict[str, Any]:
        """Every figure; with `per_image`, also those of each image."""
        report: dict[str, Any] = {
            "images": len(self.names), "threshold": self.threshold, "iou": self.iou, "dice": self.dice,
            "mean_iou": self.mean_iou, "image_iou": self.image_iou, "image_dice": self.image_dice,
            "classes": {
                name: {"iou": iou, "dice": dice}
                for name, iou, dice in zip(self.classes, self.class_iou, self.class_dice, strict=True)
            },
        }  # fmt: skip
        if per_image:
            report["per_image"] = [
                {"name": name, "iou": iou, "dice": dice}
                for name, iou, dice in zip(self.names, self.image_ious, self.image_dices, strict=True)
            ]
        return report

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
        chosen = "largest logit" if self.threshold is None else f"threshold {self.threshold:.2f}"
        return table(["class", "IoU", "Dice"], rows, note=f"{len(self.names)} images, {chosen}")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Any,
    *,
    threshold: float | None = None,
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
        threshold: for one logit (default 0.5); refused for several.
        batch: images of one size that go through the model together, at most.
        rank, processes, total: with several processes each counts its share and `total` sums the counts.
        on_images: called with the number of images done, after each batch.
    Raises: BadInput for an empty data set, a threshold outside 0..1, or a model of another number of classes.
    """
    if threshold is not None and not 0 < threshold < 1:
        raise BadInput(f"threshold={threshold}: must lie between 0 and 1")
    classes = tuple(samples.classes)
    confusion = torch.zeros(len(samples), len(classes), len(classes), dtype=torch.int64)
    names, outputs = [""] * len(samples), 1
    for group, logits, masks in _logits(model, samples, batch, rank, processes, on_images):
        outputs = logits.shape[1]
        if outputs > 1 and threshold is not None:
            raise BadInput(largest_wins(threshold, outputs))
        predicted = predicted_classes(logits, threshold)
        for (index, sample), truth, guess in zip(group, masks, predicted, strict=True):
            names[index], confusion[index] = sample.name, _confusion(guess, truth, len(classes))
    if total is not None and processes > 1:
        confusion = total(confusion)
    return Scores(classes, (threshold or 0.5) if outputs == 1 else None, tuple(names), confusion.cpu())


@torch.no_grad()
def best_threshold(
    model: nn.Module,
    samples: Any,
    *,
    batch: int = 8,
    rank: int = 0,
    processes: int = 1,
    total: Total | None = None,
    on_images: Callable[[int], object] | None = None,
) -> float | None:
    """The threshold of `GRID` with the largest Dice over all pixels of these samples: choose it on validation images.

    One pass: a pixel is counted by the number of thresholds that it reaches. None for a model of several logits, of
    which the largest wins.
    """
    grid = torch.tensor(GRID, dtype=torch.float32)
    counts = torch.zeros(2, len(GRID) + 1, dtype=torch.int64)  # truth, thresholds reached
    for _, logits, masks in _logits(model, samples, batch, rank, processes, on_images):
        if logits.shape[1] > 1:
            return None
        reached = torch.bucketize(logits[:, 0].float().sigmoid(), grid.to(logits.device), right=True)
        flat = reached.flatten() + (len(GRID) + 1) * (masks.flatten() > 0)
        judged = flat[masks.flatten() != IGNORE]
        counts += torch.bincount(judged, minlength=counts.numel()).view_as(counts).cpu()
    if total is not None and processes > 1:
        counts = total(counts).cpu()
    positive = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # truth, threshold: pixels called a defect
    dice = 2 * positive[1] / (positive.sum(0) + counts[1].sum()).clamp(min=1)
    best = (dice >= dice.max()).nonzero().flatten().tolist()
    return min((GRID[i] for i in best), key=lambda value: abs(value - 0.5))


def largest_wins(threshold: float, outputs: int) -> str:
    """Why a threshold is refused for a model of several logits."""
    return f"threshold={threshold:g} is for one logit; this model gives {outputs}, and the largest wins: leave it out"


def predicted_classes(logits: Tensor, threshold: float | None) -> Tensor:
    """`N O H W` logits -> `N H W` class indices: one logit against the threshold, several by the largest."""
    if logits.shape[1] > 1:
        return logits.argmax(1)
    return (logits[:, 0].float().sigmoid() >= (0.5 if threshold is None else threshold)).long()


def _logits(
    model: nn.Module, samples: Any, batch: int, rank: int, processes: int, on_images: Callable[[int], object] | None
) -> Iterator[tuple[Group, Tensor, Tensor]]:
    """Indices and samples, logits `n O H W` and masks `n H W` of this process's images, grouped by size."""
    if not len(samples):
        raise BadInput("there are no images to evaluate")
    waiting, held = dict[tuple[int, ...], Group](), 0
    with evaluating(model):
        for index in range(rank, len(samples), processes):
            size = tuple((sample := samples[index]).image.shape[-2:])
            waiting.setdefault(size, []).append((index, sample))
            held += size[0] * size[1]
            full = [size] if len(waiting[size]) >= max(1, min(batch, BATCH_PIXELS // (size[0] * size[1]))) else []
            for size in full or (list(waiting) if held > HELD_PIXELS else []):
                group = waiting.pop(size)
                held -= len(group) * size[0] * size[1]
                yield _run(model, group, len(samples.classes))
                if on_images:
                    on_images(index + 1)
        for group in waiting.values():
            yield _run(model, group, len(samples.classes))
        if on_images:
            on_images(len(samples))


def _run(model: nn.Module, group: Group, classes: int) -> tuple[Group, Tensor, Tensor]:
    device = next(model.parameters()).device
    images = to_float(torch.stack([sample.image for _, sample in group]).to(device))
    masks = torch.stack([sample.mask for _, sample in group]).to(device)
    h, w = images.shape[-2:]
    logits = model(pad_to(images, getattr(model, "size_multiple", 32)))[..., :h, :w]
    if logits.shape[1] != classes and (logits.shape[1], classes) != (1, 2):
        raise BadInput(f"the model gives {logits.shape[1]} classes, the data has {classes}")
    return group, logits, masks


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
