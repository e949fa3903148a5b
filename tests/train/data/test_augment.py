"""Augmentation: image and mask stay together, sizes hold, and the numbers are torchvision's for the same dice."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from leanconv.errors import BadInput
from leanconv.train.data.augment import PlainTransform, TrainTransform, to_float, to_uint8


def one(transform, image, mask, seed=None):
    """A sample by itself; without a seed, by the next of the default generator's."""
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    images, masks = transform.batch([(image, mask)], [seed])
    return images[0], masks[0]


def marked(h, w, seed=0):
    """An image whose first channel holds the mask, so that any disagreement shows."""
    mask = (torch.rand(h, w, generator=torch.Generator().manual_seed(seed)) < 0.2).to(torch.uint8)
    return torch.stack([mask * 255, torch.zeros_like(mask), torch.zeros_like(mask)]), mask


@pytest.mark.parametrize(("h", "w"), [(40, 60), (16, 16), (5, 70), (1, 1), (3, 2)])
@pytest.mark.parametrize("defect_crop", [0.0, 1.0])
def test_image_and_mask_stay_together(h, w, defect_crop):
    image, mask = marked(h, w)
    transform = TrainTransform(16, light=0, defect_crop=defect_crop)
    for _ in range(20):
        seen, truth = one(transform, image, mask)
        assert (seen.dtype, truth.dtype) == (torch.float32, torch.int64)
        assert (tuple(seen.shape), tuple(truth.shape)) == ((3, 16, 16), (16, 16))
        assert torch.equal(to_uint8(seen)[0], (truth * 255).to(torch.uint8))


def test_zoom_keeps_them_together_up_to_interpolation():
    image, mask = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.uint8)
    mask[20:40, 10:50] = 1
    image[0] = mask * 255
    transform = TrainTransform(32, scale=(0.6, 1.6), light=0)
    for _ in range(20):
        seen, truth = one(transform, image, mask)
        assert tuple(truth.shape) == (32, 32)
        assert set(truth.unique().tolist()) <= {0, 1}
        assert ((to_uint8(seen)[0] > 127) != (truth > 0)).float().mean() < 0.08
        assert type(seen) is type(truth) is torch.Tensor


def test_a_seed_gives_the_same_crop_in_any_batch_and_others_do_not():
    image, mask = marked(50, 50)
    transform = TrainTransform(16, scale=(0.8, 1.25), defect_crop=0.5)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    whole = transform.batch([(image, mask)] * 4, [1, 2, 3, 1])
    np.random.seed(5)  # noqa: NPY002 - foreign dice must not matter
    for place, seed in enumerate([1, 2, 3, 1]):
        alone = one(transform, image, mask, seed)
        assert all(torch.equal(a[place], b) for a, b in zip(whole, alone, strict=True))
    assert not torch.equal(whole[0][0], whole[0][1])
    assert torch.equal(torch.get_rng_state(), state), "the network's random numbers were used up"


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.6, 1.7)])
@pytest.mark.parametrize(("h", "w"), [(40, 60), (16, 16), (5, 70), (1, 1), (3, 2), (31, 29)])
def test_the_numbers_are_torchvisions(h, w, scale):
    """As one image at a time, with v2's transforms and torch's own generator: no pixel differs."""
    size, light = 16, 0.25
    image = torch.randint(0, 256, (3, h, w), dtype=torch.uint8)
    _, mask = marked(h, w)
    for seed in range(25):
        torch.manual_seed(seed)
        window = max(1, round(size / (scale[0] * (scale[1] / scale[0]) ** torch.rand(()).item())))
        around = mask.nonzero() if torch.rand(()).item() < 0.5 else []
        middle = around[int(torch.randint(len(around), ()))].tolist() if len(around) else None
        start = []
        for axis, length in enumerate((h, w)):
            low, high = min(0, length - window), max(0, length - window)
            if middle:
                low, high = max(low, middle[axis] - window + 1), min(high, middle[axis])
            start.append(low + int(torch.randint(high - low + 1, ())))
        pad = [
            (torch.arange(at, at + window) % max(1, 2 * n - 2)).tolist() for at, n in zip(start, (h, w), strict=True)
        ]
        rows, columns = ([min(i, max(0, 2 * n - 2 - i)) for i in p] for p, n in zip(pad, (h, w), strict=True))
        cut = tv_tensors.Image(image[:, rows][:, :, columns]), tv_tensors.Mask(mask[rows][:, columns])
        cut = [v2.functional.resize(each, [size, size], antialias=True) for each in cut] if window != size else cut
        if int(torch.randint(2, ())):
            cut = [v2.functional.horizontal_flip(each) for each in cut]
        turns = int(torch.randint(4, ()))
        cut = [torch.rot90(each.as_subclass(torch.Tensor), turns, (-2, -1)) for each in cut]
        relit = v2.ColorJitter(brightness=light, contrast=light, saturation=light)(cut[0])
        seen, truth = one(TrainTransform(size, scale, defect_crop=0.5, light=light), image, mask, seed)
        assert torch.equal(seen, to_float(relit))
        assert torch.equal(truth, cut[1].long())


def test_all_eight_symmetries_come_up():
    image = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3) * 9
    seen = {one(TrainTransform(3, light=0), image, image[0])[0].numpy().tobytes() for _ in range(200)}
    expected = {
        to_float(torch.rot90(image.flip(-1) if flip else image, k, (1, 2))).numpy().tobytes()
        for flip in (0, 1)
        for k in range(4)
    }
    assert seen == expected
    still = one(TrainTransform(3, light=0, flips=False), image, image[0])[0]
    assert torch.equal(still, to_float(image))


def test_defect_crops_hold_a_defect_and_others_rarely_do():
    image, mask = marked(200, 200)
    mask.zero_()[137, 20] = 1
    favoured = [one(TrainTransform(16, defect_crop=1.0), image, mask)[1] for _ in range(50)]
    assert all(int(truth.sum()) == 1 for truth in favoured)
    places = {tuple(truth.nonzero()[0].tolist()) for truth in favoured}
    assert len(places) > 25  # anywhere in the crop, not always in its middle
    assert sum(int(one(TrainTransform(16), image, mask)[1].sum()) for _ in range(50)) < 10


def test_light_changes_the_image_alone():
    image, mask = marked(16, 16)
    image = image // 2 + 60
    changed, truth = one(TrainTransform(16, flips=False, light=0.3), image, mask)
    assert torch.equal(truth, mask.long())
    assert not torch.equal(changed, to_float(image))
    assert (changed - to_float(image)).abs().mean() < 0.8


def test_evaluation_changes_nothing():
    image, mask = marked(9, 7)
    square, of_it = image[:, :7, :7], mask[:7, :7]
    seen, truth = one(PlainTransform(7), square, of_it)
    assert torch.equal(truth, of_it.long())
    assert torch.equal(to_uint8(seen), square)
    np.testing.assert_allclose(seen, (square.numpy() / 255 - 0.5) / 0.25, atol=1e-6)
    seen, truth = one(PlainTransform(32), image, mask)
    assert (tuple(seen.shape), tuple(truth.shape)) == ((3, 32, 32), (32, 32))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"scale": (2, 1)}, {"scale": (0, 1)}, {"defect_crop": 2}, {"light": 1}])
def test_impossible_settings(wrong):
    with pytest.raises(BadInput, match=f"augment: .*{next(iter(wrong))}="):
        TrainTransform(**{"size": 16, **wrong})
