"""Augmentation: image and mask stay together, sizes hold, and the dice are torch's alone."""

import numpy as np
import pytest
import torch

from leanconv.errors import BadInput
from leanconv.train.data.augment import PlainTransform, TrainTransform, to_float, to_uint8


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
        seen, truth = transform(image, mask)
        assert (seen.dtype, truth.dtype) == (torch.float32, torch.int64)
        assert (tuple(seen.shape), tuple(truth.shape)) == ((3, 16, 16), (16, 16))
        assert torch.equal(to_uint8(seen)[0], (truth * 255).to(torch.uint8))


def test_zoom_keeps_them_together_up_to_interpolation():
    image, mask = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.zeros(64, 64, dtype=torch.uint8)
    mask[20:40, 10:50] = 1
    image[0] = mask * 255
    transform = TrainTransform(32, scale=(0.6, 1.6), light=0)
    for _ in range(20):
        seen, truth = transform(image, mask)
        assert tuple(truth.shape) == (32, 32)
        assert set(truth.unique().tolist()) <= {0, 1}
        assert ((to_uint8(seen)[0] > 127) != (truth > 0)).float().mean() < 0.08
        assert type(seen) is type(truth) is torch.Tensor


def test_the_same_dice_give_the_same_crop_and_others_do_not():
    image, mask = marked(50, 50)
    transform = TrainTransform(16, scale=(0.8, 1.25), defect_crop=0.5)
    state = torch.get_rng_state()
    first = [transform(image, mask)[0] for _ in range(4)]
    torch.set_rng_state(state)
    np.random.seed(5)  # noqa: NPY002 - foreign dice must not matter
    again = [transform(image, mask)[0] for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])


def test_all_eight_symmetries_come_up():
    image = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3) * 9
    seen = {TrainTransform(3, light=0)(image, image[0])[0].numpy().tobytes() for _ in range(200)}
    expected = {
        to_float(torch.rot90(image.flip(-1) if flip else image, k, (1, 2))).numpy().tobytes()
        for flip in (0, 1)
        for k in range(4)
    }
    assert seen == expected
    still = TrainTransform(3, light=0, flips=False)(image, image[0])[0]
    assert torch.equal(still, to_float(image))


def test_defect_crops_hold_a_defect_and_others_rarely_do():
    image, mask = marked(200, 200)
    mask.zero_()[137, 20] = 1
    favoured = [TrainTransform(16, defect_crop=1.0)(image, mask)[1] for _ in range(50)]
    assert all(int(truth.sum()) == 1 for truth in favoured)
    places = {tuple(truth.nonzero()[0].tolist()) for truth in favoured}
    assert len(places) > 25  # anywhere in the crop, not always in its middle
    assert sum(int(TrainTransform(16)(image, mask)[1].sum()) for _ in range(50)) < 10


def test_light_changes_the_image_alone():
    image, mask = marked(16, 16)
    image = image // 2 + 60
    changed, truth = TrainTransform(16, flips=False, light=0.3)(image, mask)
    assert torch.equal(truth, mask.long())
    assert not torch.equal(changed, to_float(image))
    assert (changed - to_float(image)).abs().mean() < 0.8


def test_evaluation_changes_nothing():
    image, mask = marked(9, 7)
    seen, truth = PlainTransform()(image, mask)
    assert torch.equal(truth, mask.long())
    assert torch.equal(to_uint8(seen), image)
    np.testing.assert_allclose(seen, (image.numpy() / 255 - 0.5) / 0.25, atol=1e-6)
    seen, truth = PlainTransform(32)(image, mask)
    assert (tuple(seen.shape), tuple(truth.shape)) == ((3, 32, 32), (32, 32))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"scale": (2, 1)}, {"scale": (0, 1)}, {"defect_crop": 2}, {"light": 1}])
def test_impossible_settings(wrong):
    with pytest.raises(BadInput, match=f"augment: .*{next(iter(wrong))}="):
        TrainTransform(**{"size": 16, **wrong})
