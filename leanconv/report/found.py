"""Found: what a model finds and misses, counted in pixels, images and separate defects."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leanconv.train.data.masks import IGNORE
from leanconv.train.tasks.decision import Rule
from leanconv.train.tasks.objects import MATCHED, REPORTED, TRUE, count_objects

Counts = NDArray[np.int64]
Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Found:
    """What a model finds on a set of images.

    Attributes:
        names: of the images.
        counts: `N K K` pixel counts of each image, rows = truth, columns = prediction; class 0 is the background.
    """

    names: tuple[str, ...]
    counts: Counts

    @property
    def pixels(self) -> float:
        """Share of the defect pixels that have the right class (recall), NaN without defects."""
        total = self.counts[:, 1:].sum()
        return float(self._hits().sum() / total) if total else math.nan

    @property
    def precision(self) -> float:
        """Share of the marked pixels that have the right class, NaN if nothing is marked."""
        total = self.counts[:, :, 1:].sum()
        return float(self._hits().sum() / total) if total else math.nan

    @property
    def with_defect(self) -> int:
        """Images that have a defect."""
        return int(self._defective().sum())

    @property
    def without_a_hit(self) -> int:
        """Images that have a defect, no pixel of which was found."""
        return int((self._defective() & (self._hits() == 0)).sum())

    @property
    def clean(self) -> int:
        """Images without a defect."""
        return len(self.names) - self.with_defect

    @property
    def false_alarms(self) -> int:
        """Images without a defect in which one was marked."""
        marked = self.counts[:, :, 1:].sum((1, 2)) > 0
        return int((~self._defective() & marked).sum())

    @property
    def defective(self) -> set[str]:
        """Names of the images that have a defect."""
        return {name for name, there in zip(self.names, self._defective(), strict=True) if there}

    def _defective(self) -> NDArray[np.bool_]:
        return self.counts[:, 1:].sum((1, 2)) > 0

    def _hits(self) -> Counts:
        """Defect pixels of the right class in each image."""
        return np.diagonal(self.counts, axis1=1, axis2=2)[:, 1:].sum(1)


def dice_of(counts: Counts) -> NDArray[np.float64]:
    """`... K K` pixel counts -> `...` Dice over all pixels: the mean of the defect classes there; 1 for none."""
    hits = 2.0 * np.diagonal(counts, axis1=-2, axis2=-1)[..., 1:]
    sizes = (counts.sum(-1) + counts.sum(-2))[..., 1:]
    dices = np.where(sizes > 0, hits / np.maximum(sizes, 1), 0.0)
    there = (sizes > 0).sum(-1)
    return np.where(there > 0, dices.sum(-1) / np.maximum(there, 1), 1.0)


@dataclass(frozen=True)
class DefectCount:
    """The separate defects of one image: how many there are and were found, and how many are falsely reported."""

    total: int
    found: int
    false: int

    @property
    def missed(self) -> int:
        return self.total - self.found

    def __str__(self) -> str:
        counts = {"found": self.found, "missed": self.missed} if self.total else {}
        counts |= {f"false alarm{'s' * (self.false != 1)}": self.false} if self.false else {}
        return ", ".join(f"{count} {word}" for word, count in counts.items()) or "no defect, none marked"


def count_defects(guess: Mask, truth: Mask, rule: Rule | None = None) -> DefectCount:
    """Count the defects in `H W` class indices as `eval` does (`tasks/objects.py`), by the run's rule."""
    chosen = (rule or Rule()).chosen(0, 0)
    classes = int(max(guess.max(initial=0), np.where(truth == IGNORE, 0, truth).max(initial=0))) + 1
    counts = count_objects(guess, truth, max(2, classes), chosen.merge, [chosen.min_area])[0].sum(0)
    matched = int(counts[MATCHED])
    return DefectCount(int(counts[TRUE]), matched, int(counts[REPORTED]) - matched)


def names_of(classes: Sequence[str], truth: Mask) -> str:
    """The classes in a mask as words, or "no defect"."""
    held = [int(k) for k in np.unique(truth) if 0 < k != IGNORE]
    return ", ".join(classes[k] if k < len(classes) else f"class {k}" for k in held) or "no defect"
