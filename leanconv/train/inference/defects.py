"""The defects in an image: from logits to a class a pixel, to defects with box, area and score, to a verdict."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanconv.train.data.classes import made_up
from leanconv.train.tasks.components import components, scipy_image
from leanconv.train.tasks.decision import Decision, classes_and_scores


@dataclass(frozen=True)
class Defect:
    """One defect: a connected patch of pixels of one class, or several near ones.

    Attributes:
        box: x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row after it.
        area_px: its number of pixels.
        score: the mean of the score map over them.
        class_index: its class in the mask; 1 where there is only one.
        class_name: the name of that class.
    """

    box: tuple[int, int, int, int]
    area_px: int
    score: float
    class_index: int = 1
    class_name: str = "defect"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "box": list(self.box),
            "area_px": self.area_px,
            "score": self.score,
            "class": self.class_name,
            "class_index": self.class_index,
        }


@dataclass(frozen=True)
class Prediction:
    """The defects of one image, and whether it passes.

    Attributes:
        thresholds: of each class by name; empty where the largest logit won.
        why: what fails the image; empty if it passes.
    """

    image: str
    width: int
    height: int
    thresholds: dict[str, float]
    defects: tuple[Defect, ...]
    why: str = ""

    @property
    def area_px(self) -> int:
        """The number of pixels of its defects."""
        return sum(defect.area_px for defect in self.defects)

    @property
    def verdict(self) -> str:
        """`pass` or `fail`."""
        return "fail" if self.why else "pass"

    def __str__(self) -> str:
        number = f"{len(self.defects)} defect{'' if len(self.defects) == 1 else 's'}"
        return f"{self.image}  {self.width}x{self.height}  {self.verdict}  {number}  {self.area_px} px"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: also what `<stem>.json` holds. `threshold`: that of a single class."""
        each = list(self.thresholds.values())
        return {
            "image": self.image,
            "width": self.width,
            "height": self.height,
            "threshold": each[0] if len(each) == 1 else None,
            "thresholds": self.thresholds,
            "verdict": self.verdict,
            "why": self.why,
            "defect_area_px": self.area_px,
            "defects": [defect.to_dict() for defect in self.defects],
        }


def find_defects(mask: np.ndarray, score: np.ndarray, *, merge: int = 0, min_area: int = 0) -> list[Defect]:
    """The components of the non-zero pixels of `mask` (`H W`, class indices or bool), largest first.

    `score`: `H W`, any float. `merge`, `min_area`: see `Rule`.
    """
    return _listed(*components(mask, merge), score, Decision(), min_area)[0]


def judge(image: str, logits: Tensor, decision: Decision) -> tuple[Tensor, Tensor, Prediction]:
    """What is written for one picture, whose name is `image`, from its logits `O H W`.

    Returns: uint8 `H W`, the class of every pixel, which the thresholds alone decide; the same with the reported
    defects only; and these, with the verdict.
    """
    if not decision.classes:
        decision = replace(decision, classes=made_up(max(2, len(logits))))
    if len(logits) == 1 and decision.threshold is None:
        decision = replace(decision, threshold=0.5)
    classes, scores = classes_and_scores(logits[None], decision.threshold)
    mask = classes[0].to(torch.uint8)
    rule = decision.rule.chosen(0, 0)
    labels, kinds = components(mask.numpy(), rule.merge)
    found, small = _listed(labels, kinds, scores[0].numpy(), decision, rule.min_area)
    shown = torch.from_numpy(np.where(small[labels], 0, mask.numpy()))
    totals: dict[str, tuple[str, int, int]] = {}
    for defect in found:
        _, count, area = totals.get(defect.class_name, ("", 0, 0))
        totals[defect.class_name] = (defect.class_name, count + 1, area + defect.area_px)
    thresholds = {} if decision.threshold is None else decision.thresholds
    height, width = mask.shape
    return mask, shown, Prediction(
        image, width, height, thresholds, tuple(found), rule.why_fail(list(totals.values()))
    )  # fmt: skip


def _listed(
    labels: np.ndarray, kinds: np.ndarray, score: np.ndarray, decision: Decision, min_area: int
) -> tuple[list[Defect], np.ndarray]:
    """The components of at least `min_area` pixels, largest first; and of each label, whether it is smaller."""
    area = np.bincount(labels.ravel(), minlength=len(kinds) + 1)
    total = np.bincount(labels.ravel(), score.ravel(), minlength=len(kinds) + 1)
    small = area < min_area
    small[0] = False
    boxes = scipy_image().find_objects(labels)
    found = []
    for label in (np.argsort(-area[1:], kind="stable") + 1).tolist():
        if not small[label]:
            rows, columns = boxes[label - 1]
            box = (columns.start, rows.start, columns.stop, rows.stop)
            kind = int(kinds[label - 1])
            found.append(Defect(box, int(area[label]), float(total[label] / area[label]), kind, decision.name(kind)))
    return found, small
