"""synthetic:wafer: the same in every process, disjoint splits, masks that mark what was drawn and nothing else."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.random import default_rng

from leanconv.train.data.samples import open_data
from leanconv.train.synthetic import wafer as room
from leanconv.train.synthetic.flaws import block_etch, bridge, particle, scratch, stain
from leanconv.train.synthetic.surface import surface
from leanconv.train.synthetic.wafer import KINDS, wafer


def digest(image, mask):
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + mask.tobytes()).hexdigest()


def test_what_a_picture_is():
    image, mask, kinds = wafer(1, 96)
    assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((96, 96, 3), np.uint8, (96, 96), np.uint8)
    assert set(np.unique(mask)) <= {0, 1}
    assert set(kinds) <= set(KINDS)


def test_another_process_draws_the_same():
    code = (
        "import hashlib, numpy as np; from leanconv.train.synthetic.wafer import wafer\n"
        "for i in range(6):\n"
        "    a, b, _ = wafer((3, i), 72)\n"
        "    print(hashlib.sha256(np.ascontiguousarray(a).tobytes() + b.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    np.random.seed(1)  # noqa: NPY002 - the global dice must not matter
    torch.manual_seed(1)
    assert other == [digest(*wafer((3, i), 72)[:2]) for i in range(6)]


def test_splits_are_disjoint_and_as_long_as_said():
    splits = {s: open_data("synthetic:wafer?size=32&count=30&seed=4", s) for s in ("train", "val", "test")}
    assert {s: len(samples) for s, samples in splits.items()} == {"train": 30, "val": 6, "test": 6}
    pictures = {digest(x.image.numpy(), x.mask.numpy()) for samples in splits.values() for x in samples}
    assert len(pictures) == 42
    other = open_data("synthetic:wafer?size=32&count=30&seed=5", "train")
    assert digest(other[0].image.numpy(), other[0].mask.numpy()) not in pictures
    assert len(open_data("synthetic:wafer", "train")) == 400
    sample = splits["train"][3]
    assert (sample.image.dtype, tuple(sample.image.shape)) == (torch.uint8, (3, 32, 32))
    assert splits["train"].classes == ("background", "defect")


def test_the_population_is_what_a_fab_sees():
    drawn = [wafer((8, i), 64) for i in range(250)]
    seen = {kind: sum(kind in kinds for _, _, kinds in drawn) for kind in KINDS}
    assert min(seen.values()) >= 12, seen
    clean = [mask for _, mask, kinds in drawn if not kinds]
    assert 15 <= len(clean) <= 50
    assert not any(mask.any() for mask in clean)
    defective = [mask.mean() for _, mask, kinds in drawn if kinds]
    assert np.mean([fraction > 0 for fraction in defective]) > 0.97  # the rest fell outside of the picture
    assert 0.05 < np.mean(defective) < 0.25
    assert np.median(defective) > 0.005


@pytest.mark.parametrize("draw", [particle, scratch, stain])
def test_a_mask_marks_what_changed_and_nothing_else(draw):
    """Drawn on an even ground: masked pixels differ from it, and pixels far from the mask do not."""
    far_changed, masked_unchanged, covered = [], [], 0
    for seed in range(40):
        image, mask = np.full((96, 96, 3), 0.5, np.float32), np.zeros((96, 96), bool)
        draw(default_rng(seed), image, mask)
        changed = np.abs(image - 0.5).max(2) > 0.04
        covered += mask.any()
        if mask.any():
            masked_unchanged.append((mask & ~changed).sum() / mask.sum())
            grown = np.pad(mask, 12)
            near = np.max([grown[y : y + 96, x : x + 96] for y in (0, 6, 12, 18, 24) for x in (0, 6, 12, 18, 24)], 0)
            far_changed.append((changed & ~near).mean())
    assert covered >= 36
    assert np.mean(masked_unchanged) < 0.2  # interference fringes cross the ground's own tone
    assert np.mean(far_changed) < 0.02  # halos reach a little further


@pytest.mark.parametrize("draw", [bridge, block_etch])
def test_damage_of_the_pattern_is_masked_exactly(draw):
    """The canvas before and after: every pixel that changed is in the mask."""
    drawn_once = 0
    for seed in range(30):
        before = surface(default_rng(seed), 200, wired=True)
        after = surface(default_rng(seed), 200, wired=True)
        assert np.array_equal(np.asarray(before.image), np.asarray(after.image))
        rng = default_rng(seed + 100)
        draw(rng, after, 90.0)
        changed = (np.asarray(before.image) != np.asarray(after.image)).any(2)
        masked = np.asarray(after.flaws) > 0
        drawn_once += changed.any()
        rim = np.pad(masked, 4)
        grown = np.max([rim[y : y + 200, x : x + 200] for y in range(9) for x in range(9)], 0)
        assert not (changed & ~grown).any()  # the dark rim's outer half lies just outside
        if changed.any():
            assert (changed & masked).sum() > 0.2 * masked.sum()  # where ground meets the same ground nothing shows
    assert drawn_once >= 20


def test_a_bridge_joins_two_lines():
    """Across the gap, the bridge's own pixels run from one line to the other without a hole."""
    found = 0
    for seed in range(60):
        drawn = surface(default_rng(seed), 160, wired=True)
        if not bridge(default_rng(seed), drawn, 70.0):
            continue
        found += 1
        masked = np.asarray(drawn.flaws) > 0
        rows, columns = masked.any(1), masked.any(0)
        assert masked.sum() >= 4
        assert rows.sum() == np.ptp(np.flatnonzero(rows)) + 1
        assert columns.sum() == np.ptp(np.flatnonzero(columns)) + 1
    assert found >= 40


@pytest.mark.parametrize("size", [16, 17, 100, 257])
def test_any_size(size):
    for seed in range(12):
        image, mask, _ = wafer(seed, size)
        assert image.shape == (size, size, 3)
        assert mask.shape == (size, size)


def test_every_weight_belongs_to_a_kind():
    assert len(room._WEIGHTS) == len(KINDS)
    assert sum(room._WEIGHTS) == pytest.approx(1)
