"""The separate defects in a mask: its 8-connected components, each with box, area and score."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Defect:
    """One connected patch of defect pixels.

    Attributes:
        box: x0, y0, x1, y1 in pixels; x1 and y1 are the first column and row after it.
        area_px: its number of pixels.
        score: the mean of the score map over them.
        class_index: its class in the mask; 1 where there is only one.
    """

    box: tuple[int, int, int, int]
    area_px: int
    score: float
    class_index: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"box": list(self.box), "area_px": self.area_px, "score": self.score, "class": self.class_index}


def find_defects(mask: np.ndarray, score: np.ndarray) -> list[Defect]:
    """The components of the non-zero pixels of `mask` (`H W`, class indices or bool), largest first.

    Pixels belong together where they touch, also at a corner, and are of one class. `score`: `H W`, any float.
    """
    row, start, stop, kind = _runs(np.asarray(mask))
    if not len(row):
        return []
    label = _components(len(row), *_touching(row, start, stop, kind))
    area = np.bincount(label, stop - start).astype(np.int64)
    # Sums over a run are differences of running sums along its row.
    sums = np.zeros((score.shape[0], score.shape[1] + 1))
    np.cumsum(score, 1, dtype=np.float64, out=sums[:, 1:])
    total = np.bincount(label, sums[row, stop] - sums[row, start])
    count = len(area)
    x0, y0 = np.full(count, mask.shape[1]), np.full(count, mask.shape[0])
    x1, y1, kinds = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.minimum.at(x0, label, start)
    np.maximum.at(x1, label, stop)
    np.minimum.at(y0, label, row)
    np.maximum.at(y1, label, row + 1)
    kinds[label] = kind
    order = np.argsort(-area, kind="stable")
    return [
        Defect((int(x0[i]), int(y0[i]), int(x1[i]), int(y1[i])), int(area[i]), float(total[i] / area[i]), int(kinds[i]))
        for i in order
    ]


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column, column after the last, and class of each run of equal non-zero pixels, row by row."""
    h, w = mask.shape
    framed = np.zeros((h, w + 2), np.int64)
    framed[:, 1:-1] = mask
    changes = framed[:, 1:] != framed[:, :-1]  # H W+1: a stretch begins or ends before column x
    row, start = np.nonzero(changes & (framed[:, 1:] != 0))
    _, stop = np.nonzero(changes & (framed[:, :-1] != 0))
    return row, start, stop, framed[row, start + 1]


def _touching(row: np.ndarray, start: np.ndarray, stop: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of touching runs of one class in neighbouring rows."""
    width = int(stop.max()) + 2
    above = (row - 1) * width
    first = np.searchsorted(row * width + stop, above + start, "left")  # ends at or after our first column
    after = np.searchsorted(row * width + start, above + stop, "right")  # begins at or before our end
    number = np.maximum(after - first, 0)
    mine = np.repeat(np.arange(len(row)), number)
    within = np.arange(len(mine)) - np.repeat(np.cumsum(number) - number, number)
    other = first[mine] + within
    same = (kind[mine] == kind[other]) & (row[other] == row[mine] - 1)
    return mine[same], other[same]


def _components(count: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A label 0, 1, ... for each of `count` nodes, equal where edges `a`-`b` connect them."""
    label = np.arange(count)
    while True:
        low, high = np.minimum(label[a], label[b]), np.maximum(label[a], label[b])
        if (low == high).all():
            return np.unique(label, return_inverse=True)[1]
        np.minimum.at(label, high, low)
        while not np.array_equal(shorter := label[label], label):
            label = shorter
