"""The classification task: one of K classes for a whole image. Cross-entropy, top-1, top-5, the confusion matrix.

loss  = -Σ_k q_k log softmax(logits)_k,   q = (1 - s) · onehot + s/K   (s: label smoothing)
top-k = share of the images whose class is among the k largest logits (of fewer classes: of all but one)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.running import evaluating
from leanconv.table import table
from leanconv.train.data.augment import to_float
from leanconv.train.data.labelled import Labelled
from leanconv.train.tasks.probe import answer, say_outputs

Total = Callable[[Tensor], Tensor]

# The most pixels of a batch; larger batches are not faster.
BATCH, BATCH_PIXELS = 256, 1 << 20
# The most classes of a confusion matrix, which grows with their square.
MATRIX_CLASSES = 200
_SHOWN = 20  # classes that the printed table shows, the worst ones


@dataclass(frozen=True)
class Classification:
    """Classification into `classes`; `smoothing`: the share of each target that is spread over all classes."""

    classes: tuple[str, ...]
    loss_name: str = "auto"
    smoothing: float = 0.0

    name: ClassVar[str] = "classify"
    goal: ClassVar[str] = "top1"  # the score of `evaluate` by which the best weights are kept
    columns: ClassVar[tuple[str, ...]] = ("top1", "top5")
    shown: ClassVar[tuple[tuple[str, str], ...]] = (("top-1", "top1"), ("top-5", "top5"))

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise BadInput(f"classification needs at least two classes, got {self.classes}")
        if self.loss_name == "bce_dice":
            raise BadInput("loss=bce_dice is for segmentation: say loss=ce for classes of whole images")

    @property
    def outputs(self) -> int:
        """The model's outputs per image: one per class."""
        return len(self.classes)

    def check(self, model: nn.Module, inputs: Tensor) -> None:
        """Raise BadInput unless the model gives `N K` for `N 3 H W`. Leaves buffers and mode alone."""
        given, wanted = answer(model, inputs), (len(inputs), self.outputs)
        if given != wanted:
            raise BadInput(
                f"the model gives {given} for {tuple(inputs.shape)}, but {self.outputs} classes "
                f"need {wanted}: {say_outputs('num_classes', self.outputs)}"
            )

    def loss(self, logits: Tensor, labels: Tensor, *, processes: int = 1, total: Total | None = None) -> Tensor:
        """The mean cross-entropy of `N K` logits against `N` class indices, in float32: processes simply average it."""
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)

    @torch.no_grad()
    def batch_score(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Top-1 of this batch, for the progress bar."""
        return (logits.argmax(1) == labels).float().mean()

    def evaluate(self, model: nn.Module, samples: Labelled, **options: Any) -> "Accuracy":
        """`evaluate` of this file."""
        return evaluate(model, samples, **options)

    def choose(self, model: nn.Module, samples: Labelled, **options: Any) -> "Chosen":
        """Nothing: the largest logit wins."""
        return self.unchosen()

    def unchosen(self) -> "Chosen":
        """The same without validation images."""
        return Chosen()


@dataclass(frozen=True)
class Chosen:
    """What a classification chooses at the end of a training: no threshold."""

    stored: ClassVar[dict[str, Any]] = {"threshold": None}
    options: ClassVar[dict[str, Any]] = {}
    note: ClassVar[str] = ""


@dataclass(frozen=True)
class Accuracy:
    """A model's scores on a set of labelled images.

    Attributes:
        classes: names.
        names: of the images.
        labels, predicted: int64 `N`, the true class of each image and the one with the largest logit.
        ranks: int64 `N`, how many classes had a larger logit than the true one: 0 is a hit.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    labels: Tensor
    predicted: Tensor
    ranks: Tensor

    threshold: ClassVar[None] = None

    @property
    def confusion(self) -> Tensor | None:
        """int64 `K K` counts, rows = truth, columns = prediction; None for more than `MATRIX_CLASSES` classes."""
        k = len(self.classes)
        if k > MATRIX_CLASSES:
            return None
        return torch.bincount(self.labels * k + self.predicted, minlength=k * k).view(k, k)

    @property
    def class_images(self) -> list[int]:
        """The number of images of each class."""
        return self._per_class(self.labels)

    @property
    def top1(self) -> float:
        """The share of images whose class has the largest logit."""
        return int((self.labels == self.predicted).sum()) / len(self.names)

    @property
    def top5(self) -> float:
        """Share whose class is among the five largest logits (of fewer than six classes: among all but the last)."""
        return int((self.ranks < min(5, len(self.classes) - 1)).sum()) / len(self.names)

    @property
    def class_accuracy(self) -> list[float | None]:
        """The recall of each class; None for a class without images."""
        hits = self._per_class(self.labels[self.labels == self.predicted])
        return [hit / count if count else None for hit, count in zip(hits, self.class_images, strict=True)]

    def confused(self, at_most: int = 5) -> list[tuple[str, str, int]]:
        """The most frequent mistakes: (true class, predicted class, images)."""
        wrong = self.labels != self.predicted
        pairs = self.labels[wrong] * len(self.classes) + self.predicted[wrong]
        found, counts = pairs.unique(return_counts=True)  # sorted: ties keep the classes' order
        order = counts.argsort(descending=True, stable=True)[:at_most]
        named = [divmod(pair, len(self.classes)) for pair in found[order].tolist()]
        return [(self.classes[a], self.classes[b], n) for (a, b), n in zip(named, counts[order].tolist(), strict=True)]

    def to_dict(self, *, per_image: bool = False) -> dict[str, Any]:
        """Every figure; with `per_image`, also whether each image was a hit, and the rank of its class."""
        report: dict[str, Any] = {
            "images": len(self.names),
            "top1": self.top1,
            "top5": self.top5,
            "classes": {
                name: {"accuracy": accuracy, "images": count}
                for name, accuracy, count in zip(self.classes, self.class_accuracy, self.class_images, strict=True)
            },
            "confused": [{"true": a, "predicted": b, "images": n} for a, b, n in self.confused(20)],
        }
        if self.confusion is not None:
            report["confusion"] = self.confusion.tolist()
        if per_image:
            report["per_image"] = [
                {"name": name, "correct": rank == 0, "rank": rank}
                for name, rank in zip(self.names, self.ranks.tolist(), strict=True)
            ]
        return report

    def __str__(self) -> str:
        known = [
            (accuracy, name, count)
            for name, accuracy, count in zip(self.classes, self.class_accuracy, self.class_images, strict=True)
            if accuracy is not None
        ]
        shown = known if len(known) <= _SHOWN else sorted(known)[:_SHOWN]
        rows: list[list[object]] = [[name, count, f"{accuracy:.4f}"] for accuracy, name, count in shown]
        if len(shown) < len(known):
            rows.append([f"... {len(known) - len(shown)} better classes", "", ""])
        rows.append(["top-1", len(self.names), f"{self.top1:.4f}"])
        rows.append([f"top-{min(5, len(self.classes) - 1)}", len(self.names), f"{self.top5:.4f}"])
        mistakes = "; ".join(f"{a} taken for {b}: {n}" for a, b, n in self.confused(3))
        return table(["class", "images", "accuracy"], rows, note=f"Most frequent mistakes: {mistakes or 'none'}")

    def _per_class(self, labels: Tensor) -> list[int]:
        counts: list[int] = torch.bincount(labels, minlength=len(self.classes)).tolist()
        return counts


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Labelled,
    *,
    batch: int = BATCH,
    rank: int = 0,
    processes: int = 1,
    total: Total | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Accuracy:
    """Run the model on the squares of all images, and count.

    Args:
        model: `N 3 S S -> N K` logits; it runs in eval mode on its own device.
        samples: labelled images; networks see them as `Labelled.square` says.
        batch: images that go through the model together, at most.
        rank, processes, total: with several processes each counts its share and `total` sums the counts.
        on_images: called with the number of images done, after each batch.
    Raises: BadInput for an empty data set, or a model of another number of classes.
    """
    if not len(samples):
        raise BadInput("there are no images to evaluate")
    count, classes = len(samples), len(samples.classes)
    predicted, ranks = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    for places, logits in _logits(model, samples, batch, range(rank, count, processes)):
        if logits.shape[1:] != (classes,):
            shape = tuple(logits.shape[1:])
            raise BadInput(f"the model gives {shape} numbers an image, the data has {classes} classes")
        best, larger = judged(logits.float(), samples.labels[places].to(logits.device))
        predicted[places], ranks[places] = best.cpu(), larger.cpu()
        if on_images:
            on_images(int(places[-1]) + 1)
    if total is not None and processes > 1:
        predicted, ranks = total(predicted).cpu(), total(ranks).cpu()
    if on_images:
        on_images(count)
    return Accuracy(tuple(samples.classes), tuple(samples.source.names), samples.labels, predicted, ranks)


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(class predicted `N`, rank `N` of the true class). If logits are equal, the first wins; NaN is never right."""
    best = logits.argmax(1)
    own = logits.gather(1, labels[:, None])
    place = torch.arange(logits.shape[1], device=logits.device)
    larger = (logits > own) | ((logits == own) & (place < labels[:, None])) | (own.isnan() & (place != labels[:, None]))
    return best, larger.sum(1)


def _logits(model: nn.Module, samples: Labelled, batch: int, mine: range) -> Iterator[tuple[Tensor, Tensor]]:
    """Places in the set and their logits."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batch = max(1, min(batch, BATCH_PIXELS // samples.size**2))
    with evaluating(model):
        for start in range(0, len(mine), batch):
            places = torch.tensor(mine[start : start + batch])
            yield places, model(to_float(_squares(samples, places).to(device)))


def _squares(samples: Labelled, places: Tensor) -> Tensor:
    if samples.images is not None:
        return samples.images[places]
    return torch.stack([samples.square(place) for place in places.tolist()])
