"""The segmentation task: the loss of a batch, and the meaning of the outputs.

Two classes (background and defect) have one logit and BCE + Dice; K > 2 classes have K logits and cross-entropy. The
training loop knows a task by `check`, `loss`, `batch_score`, `evaluate`, `choose` and its constants only:
`classify.py` is the other one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.train.data.image_reader import listing
from leanconv.train.data.masks import IGNORE
from leanconv.train.tasks import evaluate as _evaluate
from leanconv.train.tasks.decision import OPEN, Decision, Rule, predicted_classes
from leanconv.train.tasks.objects import best_rule
from leanconv.train.tasks.probe import answer, say_outputs
from leanconv.train.tasks.thresholds import threshold_curve

Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Segmentation:
    """Segmentation into `classes`; the first one is the background.

    Attributes:
        classes: their names, two or more.
        loss_name: `bce_dice`, `ce`, or `auto`.
        ignores: whether masks leave pixels out, so that processes may differ in how many they judge.
        rule: of defects and pictures, as far as the recipe says it.
    """

    classes: tuple[str, ...]
    loss_name: str = "auto"
    ignores: bool = False
    rule: Rule = OPEN

    name: ClassVar[str] = "segment"
    goal: ClassVar[str] = "dice"  # the score of `evaluate` by which the best weights are kept
    columns: ClassVar[tuple[str, ...]] = ("dice", "iou", "mean_iou", "image_dice", "image_iou")  # of history.csv
    shown: ClassVar[tuple[tuple[str, str], ...]] = (("Dice", "dice"), ("IoU", "iou"))

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise BadInput(f"segmentation needs a background and at least one class, got {self.classes}")
        if self.loss_name == "bce_dice" and len(self.classes) > 2:
            raise BadInput(f"loss=bce_dice is for two classes; the data has {len(self.classes)}: say loss=ce")

    @property
    def outputs(self) -> int:
        """The model's output channels: 1 for two classes (2 with `ce`), else one per class."""
        return 1 if len(self.classes) == 2 and self.loss_name != "ce" else len(self.classes)

    def check(self, model: nn.Module, inputs: Tensor) -> None:
        """Raise BadInput unless the model gives `N outputs H W` for `N 3 H W`. Leaves buffers and mode alone."""
        given, wanted = answer(model, inputs), (len(inputs), self.outputs, *inputs.shape[-2:])
        if given != wanted:
            raise BadInput(
                f"the model gives {given} for {tuple(inputs.shape)}, but {len(self.classes)} classes "
                f"({listing(self.classes)}) need {wanted}: {say_outputs('out_channels', self.outputs)}"
            )

    def loss(self, logits: Tensor, masks: Tensor, *, processes: int = 1, total: Total | None = None) -> Tensor:
        """The loss of `N O H W` logits against `N H W` class indices, computed in float32; IGNORE counts nowhere.

        With several processes each gives its share of the batch, and `total` sums a tensor over them.
        """
        logits, judged = logits.float(), masks != IGNORE
        if self.outputs > 1:
            losses = F.cross_entropy(logits, masks.long(), ignore_index=IGNORE, reduction="none")
            return losses.sum() / self._pixels(judged, processes, total)
        judged = judged.unsqueeze(1)  # N H W -> N 1 H W
        truth = (masks.unsqueeze(1) * judged).float()
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * judged
        dice = soft_dice(logits.sigmoid() * judged, truth, processes=processes, total=total)
        return losses.sum() / self._pixels(judged, processes, total) + 1 - dice

    def _pixels(self, judged: Tensor, processes: int, total: Total | None) -> Tensor:
        """The divisor of a process's sum: the mean over processes is then the joint batch's mean."""
        count = judged.sum().float()
        if self.ignores and processes > 1 and total is not None:  # else all processes have as many
            count = total(count) / processes
        return count.clamp(min=1)

    @torch.no_grad()
    def batch_score(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Dice of the foreground in this batch, for the progress bar."""
        judged = masks != IGNORE
        predicted = (predicted_classes(logits, None) > 0) & judged
        truth = (masks > 0) & judged
        return (2 * (predicted & truth).sum() + 1e-6) / (predicted.sum() + truth.sum() + 1e-6)

    def evaluate(self, model: nn.Module, samples: Any, **options: Any) -> "_evaluate.Scores":
        """`leanconv.train.tasks.evaluate.evaluate`."""
        return _evaluate.evaluate(model, samples, **options)

    def choose(self, model: nn.Module, samples: Any, **options: Any) -> "Chosen":
        """Thresholds, smallest area and merging by validation images, for the scores and for metrics.json."""
        curve = threshold_curve(model, samples, **options)
        rule = best_rule(model, samples, self.rule, threshold=curve.best, **options)
        decision = Decision(self.classes, curve.best, rule)
        stored = {**decision.to_dict(), "threshold_curve": curve.to_dict()}
        return Chosen(stored, decision, curve.not_learnt())

    def unchosen(self) -> "Chosen":
        """The same without validation images: the largest logit, or 0.5 of one; what the recipe leaves open is 0."""
        decision = Decision(self.classes, rule=self.rule.chosen(0, 0))
        return Chosen(decision.to_dict(), decision)


@dataclass(frozen=True)
class Chosen:
    """What a task decided at the end of a training.

    Attributes:
        stored: its part of metrics.json.
        decision: for `evaluate`.
        note: what a user should know of it, or "".
    """

    stored: dict[str, Any]
    decision: Decision
    note: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `evaluate` that follow from it."""
        return {"threshold": self.decision.threshold, "rule": self.decision.rule}


def soft_dice(probability: Tensor, truth: Tensor, *, processes: int = 1, total: Total | None = None) -> Tensor:
    """(2·Σpt + 1) / (Σp + Σt + 1) over the whole batch, so that crops without a defect do not drown the others.

    The sums are not means of per-process values. Each process adds the others' sums as constants and multiplies its own
    gradient by the number of processes, which the averaging of gradients divides out again: the averaged gradient
    is the one of the joint batch, exactly.
    """
    sums = torch.stack([(probability * truth).sum(), probability.sum() + truth.sum()])
    if processes > 1 and total is not None:
        sums = total(sums.detach().clone()) + processes * (sums - sums.detach())
    return (2 * sums[0] + 1) / (sums[1] + 1)
