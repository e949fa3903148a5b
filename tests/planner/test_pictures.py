"""Calibration pictures: as the network meets them, in one size, as a camera gives them; with labels or without."""

import numpy as np
import pytest
import torch
from torch import nn

from leanconv.errors import UnknownName
from leanconv.planner.pictures import camera_frames, of_size, picture_batches, run_of
from leanconv.runs import RunFolder

Image = pytest.importorskip("PIL.Image", reason="needs the train extra: pillow")


@pytest.fixture
def alone(tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    for index in range(5):
        Image.fromarray(np.full((40, 60, 3), 40 * index, np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.write_model("leanconv:unet?base=4&levels=1", task="segment", classes=("background", "defect"), bits=None)
    made.recipe.write_text('model = "leanconv:unet?base=4&levels=1"\ndata = "x"\nsize = 24\nsteps = 1\n')
    return made


def test_images_alone_become_squares_spread_over_the_folder(alone):
    batches = picture_batches(str(alone), nn.Conv2d(3, 1, 1), size=32, most=3)
    (batch,) = batches
    assert batch.shape == (3, 3, 32, 32)
    assert batch[:, 0, 0, 0].diff().gt(0).all()
    assert len({float(each.std()) for each in batch}) == 1


def test_masked_pictures_keep_their_size_and_a_cameras_are_bytes(tiny_data, run):
    sizes = {tuple(batch.shape[-2:]) for batch in picture_batches(str(tiny_data), nn.Conv2d(3, 1, 1))}
    assert sizes == {(64, 64)}  # 40 x 44 and 33 x 50, mirrored up to multiples of 32
    frames = camera_frames(str(tiny_data), run, "val")
    assert len(frames) == 6
    assert {tuple(frame["image"].shape) for frame in frames} == {(1, 40, 44, 3), (1, 33, 50, 3)}
    assert {frame["image"].dtype for frame in frames} == {torch.uint8}
    with pytest.raises(UnknownName, match="nosuch"):
        camera_frames(str(tiny_data), run, "nosuch")


def test_images_alone_have_the_runs_size(alone, run):
    frames = camera_frames(str(alone), run, "train", most=2)
    assert [tuple(frame["image"].shape) for frame in frames] == [(1, 24, 24, 3)] * 2
    assert run_of(str(run.path)).path == run.path
    assert run_of("timm:resnet18") is None


def test_larger_pictures_are_cut_to_their_middle_and_smaller_ones_mirrored():
    place = torch.arange(5.0)[:, None] * 10 + torch.arange(6.0)  # a pixel's number is its row and column
    (cut,) = of_size([place[None, None]], 3, 2)
    assert cut[0, 0].tolist() == [[12, 13], [22, 23], [32, 33]]
    (grown,) = of_size([place[None, None, :2, :3]], 3, 5)
    assert grown[0, 0].tolist() == [[0, 1, 2, 1, 0], [10, 11, 12, 11, 10], [0, 1, 2, 1, 0]]
    (both,) = of_size([place[None, None]], 3, 9)
    assert both.shape == (1, 1, 3, 9)
    assert both[0, 0, 0].tolist() == [10, 11, 12, 13, 14, 15, 14, 13, 12]
