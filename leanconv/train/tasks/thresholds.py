"""The thresholds of a segmentation network: Dice, precision and recall of each class over all of them, and the best."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.train.data.masks import IGNORE
from leanconv.train.tasks.decision import Threshold
from leanconv.train.tasks.images import Total, image_logits

# The candidates.
GRID = tuple(i / 100 for i in range(5, 96))
# A class counts as learnt if its Dice has come so far of the way from marking every pixel to marking the right ones.
_LEARNT = 0.1


@dataclass(frozen=True)
class Curve:
    """Counts of pixels at each threshold of GRID, over all pixels of some images.

    Attributes:
        classes: names; the background, which has no threshold, is the first.
        true: int64 `K-1`, the pixels of each class.
        called, hits: int64 `K-1 G`, pixels given to the class at a threshold, and those of them that are its.
        pixels: all that were judged.
    """

    classes: tuple[str, ...]
    true: Tensor
    called: Tensor
    hits: Tensor
    pixels: int

    @property
    def dice(self) -> Tensor:
        """`K-1 G`: 2 · hits / (called + true); 0 where nothing is there and nothing called."""
        return 2 * self.hits / (self.called + self.true[:, None]).clamp(min=1)

    @property
    def best(self) -> Threshold:
        """The thresholds with the largest Dice, of equals the one nearest to 0.5; one number for two classes."""
        found = []
        for dice in self.dice:
            best = (dice >= dice.max()).nonzero().flatten().tolist()
            found.append(min((GRID[i] for i in best), key=lambda value: abs(value - 0.5)))
        return found[0] if len(found) == 1 else tuple(found)

    def not_learnt(self) -> str:
        """Name the classes whose best Dice is hardly above that of marking every pixel; "" if there are none."""
        blind = 2 * self.true / (self.true + self.pixels)
        best = self.dice.max(1).values
        weak = (self.true > 0) & (best < blind + _LEARNT * (1 - blind))
        named = [f"{self.classes[k + 1]} (Dice {best[k]:.2f})" for k in weak.nonzero().flatten().tolist()]
        if not named:
            return ""
        return (
            f"hardly learnt yet: {', '.join(named)}, on the validation images; to mark every pixel is about as good. "
            "Their defects mean little: train longer, or with more images of them"
        )

    def to_dict(self) -> dict[str, Any]:
        """`thresholds`, and of each class by name lists `dice`, `precision`, `recall` (null where undefined)."""
        return {
            "thresholds": list(GRID),
            "classes": {
                name: {
                    "dice": [round(value, 5) for value in self.dice[k].tolist()],
                    "precision": _shares(self.hits[k], self.called[k]),
                    "recall": _shares(self.hits[k], self.true[k].expand(len(GRID))),
                }
                for k, name in enumerate(self.classes[1:])
            },
        }


@torch.no_grad()
def threshold_curve(
    model: nn.Module,
    samples: Any,
    *,
    batch: int = 8,
    rank: int = 0,
    processes: int = 1,
    total: Total | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Curve:
    """The curve of a model over these samples: choose the thresholds on validation images.

    One pass: a pixel is counted for its most probable class but the background (of one logit: the only one), by the
    number of thresholds that this probability reaches. Arguments as in `evaluate`.
    """
    grid, kinds = torch.tensor(GRID, dtype=torch.float32), len(samples.classes) - 1
    counts = torch.zeros(kinds, 2, len(GRID) + 1, dtype=torch.int64)  # class, whether it is the true one, reached
    true = torch.zeros(kinds + 1, dtype=torch.int64)
    for _, logits, masks in image_logits(model, samples, batch, rank, processes, on_images):
        logits = logits.float()
        if logits.shape[1] == 1:
            likely, kind = logits[:, 0].sigmoid(), torch.zeros_like(masks, dtype=torch.int64)
        else:
            likely, kind = logits.softmax(1)[:, 1:].max(1)
        reached = torch.bucketize(likely, grid.to(logits.device), right=True)
        flat = (2 * kind + (masks == kind + 1)) * (len(GRID) + 1) + reached
        judged = masks != IGNORE
        counts += torch.bincount(flat[judged], minlength=counts.numel()).view_as(counts).cpu()
        true += torch.bincount(masks[judged].long(), minlength=kinds + 1).cpu()
    if total is not None and processes > 1:
        counts, true = total(counts).cpu(), total(true).cpu()
    at_least = counts.flip(2).cumsum(2).flip(2)[..., 1:]  # class, truth, threshold
    return Curve(tuple(samples.classes), true[1:], at_least.sum(1), at_least[:, 1], int(true.sum()))


def _shares(part: Tensor, whole: Tensor) -> list[float | None]:
    return [round(p / w, 5) if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]
