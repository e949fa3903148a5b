"""How far two networks agree where no labels say who is right."""

from typing import Any

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.running import tensors
from leanconv.train.tasks.decision import predicted_classes

TOP1, DICE, OUTPUT = "top-1 as the dense", "Dice with the dense", "output as the dense"


def main_output(answer: Any) -> Tensor:
    """The first tensor of a network's answer. Raises BadInput where it has none."""
    found = tensors(answer)
    if not found:
        raise BadInput(f"the model gives no tensor but {type(answer).__name__}: nothing can be compared")
    return found[0]


def measure_of(answer: Tensor) -> str:
    """Which agreement is meant by an output: of classes (`N K`), of masks (`N K H W`), or of plain numbers."""
    if answer.dim() == 2 and answer.shape[1] > 1:
        return TOP1
    return DICE if answer.dim() == 4 else OUTPUT


class Agreement:
    """Sums over batches; `value` is from 0 to 1, and 1 for equal answers.

    Top-1 is the share of images of the same class. Dice is of the masks, the mean over the classes that either of the
    two predicts. For other outputs it is 1 - ‖a - b‖ / ‖a‖, at least 0.
    """

    def __init__(self, measure: str) -> None:
        self.measure = measure
        self.same = self.all = 0.0
        self.both: Tensor = torch.zeros(0, dtype=torch.float64)
        self.sizes: Tensor = torch.zeros(0, dtype=torch.float64)

    def add(self, dense: Tensor, lean: Tensor) -> None:
        """One batch of answers. Raises BadInput where their shapes differ."""
        if dense.shape != lean.shape:
            raise BadInput(f"the lean network gives {tuple(lean.shape)}, the dense one {tuple(dense.shape)}")
        if self.measure == TOP1:
            self.same += int((dense.argmax(1) == lean.argmax(1)).sum())
            self.all += len(dense)
        elif self.measure == DICE:
            self._add_masks(predicted_classes(dense, None), predicted_classes(lean, None), max(2, dense.shape[1]))
        else:
            self.same += float((dense.double() - lean.double()).square().sum())
            self.all += float(dense.double().square().sum())

    def _add_masks(self, a: Tensor, b: Tensor, classes: int) -> None:
        pairs = torch.bincount((a * classes + b).flatten(), minlength=classes**2).view(classes, classes).double()
        if not self.both.numel():
            self.both, self.sizes = torch.zeros(classes).double(), torch.zeros(classes).double()
        self.both += pairs.diagonal()
        self.sizes += pairs.sum(0) + pairs.sum(1)

    @property
    def value(self) -> float:
        if self.measure == TOP1:
            return self.same / self.all
        if self.measure == DICE:
            there = self.sizes > 0
            return float((2 * self.both[there] / self.sizes[there]).mean())
        return max(0.0, 1 - (self.same / self.all) ** 0.5) if self.all else float(self.same == 0)
