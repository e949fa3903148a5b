"""Images to fit on: of both kinds of data, as squares, spread over the split, the same each time they are read."""

import pytest
import torch
from PIL import Image

from leanconv.errors import BadInput
from leanconv.train.tasks.calibration import pictures


def test_images_with_masks_and_in_class_folders(tmp_path):
    found = pictures("synthetic:wafer?size=40&count=100", 32, 40)
    batches = list(found)
    assert [tuple(batch.shape) for batch in batches] == [(32, 3, 32, 32), (8, 3, 32, 32)]
    assert len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip(batches, found, strict=True))
    assert batches[0].dtype == torch.float32
    assert -2 <= float(batches[0].min()) < float(batches[0].max()) <= 2  # normalised as in training
    for kind, grey in (("good", 40), ("bad", 200)):
        (tmp_path / kind).mkdir()
        for number in range(6):
            Image.new("RGB", (50, 40), (grey, grey, grey)).save(tmp_path / kind / f"{number}.png")
    (batch,) = pictures(f"{tmp_path}?val=0", 32, 4)
    assert tuple(batch.shape) == (4, 3, 32, 32)
    assert len({round(float(image.mean()), 3) for image in batch}) == 2  # of both classes


def test_a_folder_of_images_alone(tmp_path):
    for number in range(6):
        Image.new("RGB", (50, 40), (number, 40, 40)).save(tmp_path / f"{number}.png")
    found = pictures(str(tmp_path), 32, 3)
    assert tuple(found.images.shape) == (3, 3, 32, 32)
    assert found.images[:, 0, 0, 0].tolist() == [0, 2, 5]


def test_no_such_data():
    with pytest.raises(BadInput, match="no such"):
        pictures("/no/such/folder", 32, 4)
