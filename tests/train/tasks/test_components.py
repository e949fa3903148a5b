"""Components equal a flood fill, also of near fragments; the numbering has no gaps."""

import numpy as np
import pytest

from leanconv.train.tasks.components import components


def flood(mask, reach=1.5):
    """Components of one class each, pixel by pixel: pixels at most `reach` apart belong together."""
    steps = range(-int(reach), int(reach) + 1)
    near = [(dy, dx) for dy in steps for dx in steps if 0 < dy**2 + dx**2 <= reach**2]
    left, found = {(y, x) for y, x in zip(*np.nonzero(mask), strict=True)}, set()
    while left:
        stack, seen = [left.pop()], []
        while stack:
            y, x = stack.pop()
            seen.append((y, x))
            for dy, dx in near:
                if (other := (y + dy, x + dx)) in left and mask[other] == mask[y, x]:
                    left.remove(other)
                    stack.append(other)
        found.add(frozenset(seen))
    return found


def grown(mask, radius):
    """The pixels at most `radius` from one of the mask: by the definition, pixel by pixel."""
    steps = range(-int(radius), int(radius) + 1)
    out = np.zeros(np.add(mask.shape, 2 * int(radius)), bool)
    for y, x in zip(*np.nonzero(mask), strict=True):
        for dy in steps:
            for dx in steps:
                if dy**2 + dx**2 <= radius**2:
                    out[y + dy + int(radius), x + dx + int(radius)] = True
    return out


def parts(mask, **options):
    labels, kinds = components(mask, **options)
    assert labels.shape == mask.shape
    assert ((labels > 0) == (np.asarray(mask) > 0)).all()
    assert sorted(np.unique(labels[labels > 0])) == list(range(1, len(kinds) + 1))
    for label, kind in enumerate(kinds, 1):
        assert (np.asarray(mask)[labels == label] == kind).all()
    return {
        frozenset(zip(*(axis.tolist() for axis in np.nonzero(labels == label)), strict=True))
        for label in range(1, len(kinds) + 1)
    }


@pytest.mark.parametrize("density", [0.05, 0.3, 0.6, 0.95])
@pytest.mark.parametrize(("h", "w"), [(1, 40), (40, 1), (23, 31)])
@pytest.mark.parametrize("classes", [2, 4])
def test_components_equal_a_flood_fill(h, w, density, classes):
    rng = np.random.default_rng([h, w, classes])
    mask = ((rng.random((h, w)) < density) * rng.integers(1, classes, (h, w))).astype(np.uint8)
    assert parts(mask) == flood(mask)


@pytest.mark.parametrize("merge", [1, 2, 3, 4, 7, 8, 9, 12])
@pytest.mark.parametrize("density", [0.01, 0.05, 0.2])
def test_merged_components_are_those_of_the_grown_mask(density, merge):
    rng = np.random.default_rng(merge)
    mask = ((rng.random((27, 33)) < density) * rng.integers(1, 3, (27, 33))).astype(np.uint8)
    edge, expected = int(merge / 2), set()
    for kind in (1, 2):
        for patch in flood(grown(mask == kind, merge / 2)):
            inside = frozenset((y - edge, x - edge) for y, x in patch)
            kept = frozenset(p for p in inside if 0 <= p[0] < 27 and 0 <= p[1] < 33 and mask[p] == kind)
            expected.add(kept)
    assert parts(mask, merge=merge) == expected


def test_the_gap_that_an_even_number_closes():
    for gap in range(12):
        mask = np.zeros((5, 30), np.uint8)
        mask[2, 3], mask[2, 4 + gap] = 1, 1
        for merge in (2, 4, 8):
            assert len(components(mask, merge)[1]) == 1 + (gap > merge), (gap, merge)


def test_a_spiral_is_one_and_an_empty_mask_none():
    mask = np.zeros((41, 41), bool)
    y, x, dy, dx, length = 20, 20, 0, 1, 2
    for turn in range(18):
        for _ in range(length):
            mask[y, x] = True
            y, x = y + dy, x + dx
        dy, dx, length = dx, -dy, length + 2 * (turn % 2)
    assert len(components(mask)[1]) == 1
    for empty in (np.zeros((5, 5), np.uint8), np.zeros((0, 7), np.uint8)):
        assert len(components(empty, 4)[1]) == 0
    assert components(np.full((1, 1), 254, np.uint8), 9)[1].tolist() == [254]
