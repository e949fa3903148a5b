"""Defects as objects: how many of the true ones are reported, how many of the reported ones are true.

A true defect is a component of one class of the mask (components.py). In the prediction, components are merged, and
those of at least `min_area` pixels are reported. A reported and a true defect of one class match where their IoU is at
least MATCH_IOU, each at most once, as many as possible. So of three reported fragments of a scratch two are false, and
of three scratches that are reported as one two are missed: both have their price, and `merge` can be chosen.

    recall = matched / true,   precision = matched / reported,   F1 = 2 · matched / (true + reported)

The IoU is low on purpose: a scratch of two pixels' width that is found one pixel beside has a third. Pixels that masks
leave out belong to no true defect, and a predicted one that mostly lies there is not counted.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from leanconv.extras import needs
from leanconv.train.data.masks import IGNORE
from leanconv.train.tasks.components import components
from leanconv.train.tasks.decision import Rule, Threshold, predicted_classes
from leanconv.train.tasks.images import Total, image_logits

MATCH_IOU = 0.1
# The candidates of `best_rule`, in pixels.
AREAS = (0, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
MERGES = (0, 2, 4, 8, 16)
# What is counted of each class.
TRUE, REPORTED, MATCHED, TRUE_AREA, REPORTED_AREA, TRUE_MERGED = range(6)  # the last by the same `merge`, for verdicts


def count_objects(
    predicted: np.ndarray, truth: np.ndarray, classes: int, merge: int, areas: Sequence[int]
) -> np.ndarray:
    """The defects of one image: int64 `A K-1 6`, for each smallest area in `areas`; see TRUE ... TRUE_MERGED.

    `predicted`, `truth`: class indices `H W`; IGNORE in the truth is not judged.
    """
    judged = truth != IGNORE
    drawn = np.where(judged, truth, 0)
    theirs, their_kind = components(drawn)
    merged_kind = components(drawn, merge)[1] if merge and len(their_kind) > 1 else their_kind
    ours, our_kind = components(predicted, merge)
    their_size = np.bincount(theirs.ravel(), minlength=len(their_kind) + 1)[1:]
    our_size = np.bincount(ours.ravel(), minlength=len(our_kind) + 1)[1:]
    our_judged = np.bincount(ours[judged], minlength=len(our_kind) + 1)[1:]
    both = (ours > 0) & (theirs > 0)
    keys, shared = np.unique(ours[both] * np.int64(len(their_kind) + 1) + theirs[both], return_counts=True)
    mine, other = keys // (len(their_kind) + 1) - 1, keys % (len(their_kind) + 1) - 1
    alike = our_kind[mine] == their_kind[other]
    alike &= shared >= MATCH_IOU * (our_judged[mine] + their_size[other] - shared)
    found = np.zeros((len(areas), classes, 6), np.int64)
    found[:, :, TRUE] = np.bincount(their_kind, minlength=classes)
    found[:, :, TRUE_AREA] = np.bincount(their_kind, their_size, minlength=classes)
    found[:, :, TRUE_MERGED] = np.bincount(merged_kind, minlength=classes)
    for counts, area in zip(found, areas, strict=True):
        reported = (our_size >= area) & (2 * our_judged > our_size)
        counts[:, REPORTED] = np.bincount(our_kind[reported], minlength=classes)
        counts[:, REPORTED_AREA] = np.bincount(our_kind[reported], our_size[reported], minlength=classes)
        edges = alike & reported[mine]
        matched = _matched(other[edges], mine[edges], len(their_kind), len(our_kind))
        counts[:, MATCHED] = np.bincount(their_kind[matched], minlength=classes)
    return found[:, 1:]


def _matched(theirs: np.ndarray, ours: np.ndarray, many: int, others: int) -> np.ndarray:
    """The true defects in a largest matching of the pairs."""
    if len(np.unique(ours)) == len(ours):  # no two compete for one: each has its first
        return np.unique(theirs)
    with needs("scipy", "train"):
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import maximum_bipartite_matching
    graph = csr_array((np.ones(len(ours), np.int8), (theirs, ours)), shape=(many, others))
    return np.nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0)[0]


@torch.no_grad()
def best_rule(
    model: nn.Module,
    samples: Any,
    rule: Rule,
    *,
    threshold: Threshold = None,
    batch: int = 8,
    rank: int = 0,
    processes: int = 1,
    total: Total | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Rule:
    """The rule with the smallest area and the merging of the largest F1 over these samples, all classes together.

    Of equals the least merging, then the smallest area. What the rule says already stays. Arguments as in `evaluate`.
    """
    areas = AREAS if rule.min_area < 0 else (rule.min_area,)
    merges = MERGES if rule.merge < 0 else (rule.merge,)
    if len(areas) == len(merges) == 1:
        return rule
    counts = torch.zeros(len(merges), len(areas), 6, dtype=torch.int64)
    for _, logits, masks in image_logits(model, samples, batch, rank, processes, on_images):
        guesses = predicted_classes(logits, threshold).cpu().numpy()
        for guess, truth in zip(guesses, masks.cpu().numpy(), strict=True):
            for place, merge in enumerate(merges):
                found = count_objects(guess, truth, len(samples.classes), merge, areas)
                counts[place] += torch.from_numpy(found.sum(1))
    if total is not None and processes > 1:
        counts = total(counts).cpu()
    score = f1(counts)
    best = int((score >= score.max()).flatten().nonzero()[0])
    return rule.chosen(areas[best % len(areas)], merges[best // len(areas)])


def f1(counts: Tensor) -> Tensor:
    """F1 of counts `... 6`; 1 where there is nothing to find and nothing found."""
    both = counts[..., TRUE] + counts[..., REPORTED]
    return torch.where(both > 0, 2 * counts[..., MATCHED] / both.clamp(min=1), 1.0)


def summary(counts: Tensor) -> dict[str, float | int | None]:
    """The figures of counts `6`, by name; null for a share of nothing."""
    true, reported, matched = counts[:3].tolist()
    return {
        "true": true,
        "reported": reported,
        "matched": matched,
        "precision": matched / reported if reported else None,
        "recall": matched / true if true else None,
        "f1": float(f1(counts)),
    }
