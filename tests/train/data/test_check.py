"""Every file is looked at before a training begins, whatever memory keeps; what is wrong is said of all at once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from leanconv.errors import BadFiles, BadInput
from leanconv.train.data import check, labelled, samples
from leanconv.train.data.check import FileCheck
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.samples import open_data
from leanconv.train.inference.score import score_run
from leanconv.train.recipe import Recipe
from leanconv.train.setup import open_splits


def noise(seed, h=20, w=24):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


@pytest.fixture
def pairs(tmp_path):
    """20 training, 3 validation and 3 test images with masks; memory keeps two of them."""
    for split, count in {"train": 20, "val": 3, "test": 3}.items():
        for kind in ("images", "masks"):
            (tmp_path / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((20, 24), np.uint8)
            mask[3:9, index : index + 4] = 255
            Image.fromarray(noise(index)).save(tmp_path / split / "images" / f"{index:02d}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{index:02d}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def _little_memory(monkeypatch):
    monkeypatch.setattr(samples, "CACHE_BYTES", 2 * 20 * 24 * 4)
    monkeypatch.setattr(labelled, "CACHE_BYTES", 2 * 20 * 24 * 3)
    monkeypatch.setattr(labelled, "SMALL_SIDE", 0)


class Told:
    """Stands for a run's Reporter."""

    visible = False

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    note = say


def cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def test_a_late_broken_photograph_is_found_beyond_what_memory_keeps(pairs):
    cut(pairs / "train/images/17.png")
    with pytest.raises(BadInput, match=r"images/17\.png: corrupt or truncated image"):
        open_data(str(pairs), "train").check()


def test_many_faults_are_listed_at_once(pairs):
    """In images and masks, known from headers and from pixels alone, in every split."""
    for index in (4, 5, 17):
        cut(pairs / f"train/images/{index:02d}.png")
    Image.fromarray(noise(0)[..., 0]).save(pairs / "train/masks/09.png")
    Image.new("L", (9, 9)).save(pairs / "train/masks/19.png")
    (pairs / "test/images/02.png").write_bytes(b"none")
    (pairs / "val/images/01.png").unlink()
    Image.fromarray(noise(0)[..., 0].astype(np.float32)).save(pairs / "val/images/01.tif")
    recipe = Recipe(data=str(pairs), steps=1)
    with pytest.raises(BadFiles) as error:
        open_splits(recipe, "segment", Told())
    named = [fault.split(": ")[0].removeprefix(f"{pairs}/") for fault in error.value.faults]
    assert named == [
        "train/images/04.png",
        "train/images/05.png",
        "train/masks/09.png",
        "train/images/17.png",
        "train/masks/19.png",
        "val/images/01.tif",
        "test/images/02.png",
    ]
    assert str(error.value).startswith("7 of 26 images cannot be used: ")
    assert "\n" not in str(error.value)


def test_the_rest_of_a_long_list_is_counted(pairs):
    for index in range(15):
        cut(pairs / f"train/images/{index:02d}.png")
    with pytest.raises(BadFiles, match=r"15 of 20 images cannot be used: .*00\.png.*07\.png.*; and 7 more$") as error:
        open_data(str(pairs), "train").check()
    assert "08.png" not in str(error.value)
    assert len(error.value.faults) == 15


@pytest.mark.parametrize("parquet", [False, True])
def test_pictures_of_classes_are_all_looked_at_too(tmp_path, parquet):
    files = []
    for index in range(12):
        path = tmp_path / "train" / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(index)).save(path)
        files.append(path)
    for index in (6, 9, 10):
        cut(files[index])
    root = tmp_path
    if parquet:
        root = tmp_path / "rows"
        root.mkdir()
        columns = {"image": [path.read_bytes() for path in files], "label": [0, 1] * 6}
        pq.write_table(pa.table(columns), root / "train-0.parquet")
    with pytest.raises(BadFiles, match="3 of 12 images cannot be used") as error:
        open_labelled(f"{root}?val=0", "train", size=16).check(progress=False)
    assert len(error.value.faults) == 3
    for place, index in enumerate((6, 9, 10) if parquet else (6, 10, 9)):
        assert (f"row {index}:" if parquet else f"{index:02d}.png") in error.value.faults[place]


def test_eval_looks_at_every_file_first(pairs, tmp_path):
    from leanconv.runs import RunFolder, load

    folder = RunFolder(tmp_path / "run")
    folder.write_model("leanconv:unet?base=2&levels=2")
    folder.save_model(load("leanconv:unet?base=2&levels=2"))
    folder.recipe.write_text(f"data = '{pairs}'\nsteps = 1\n")
    for index in (0, 2):
        cut(pairs / f"test/images/{index:02d}.png")
    with pytest.raises(BadFiles, match="2 of 3 images cannot be used"):
        score_run(folder.path)


def test_of_a_huge_set_it_is_said_how_many_were_decoded(pairs, monkeypatch):
    monkeypatch.setattr(check, "MOST_PIXELS", 5 * 20 * 24)
    samples = open_data(str(pairs), "train")
    samples.check()
    assert samples.remarks() == [
        "5 of 20 images were decoded beforehand, of the others the headers were read",
    ]
    Image.new("L", (9, 9)).save(pairs / "train/masks/19.png")  # headers are read of all
    with pytest.raises(BadInput, match=r"masks/19\.png: the mask is 9x9"):
        open_data(str(pairs), "train").check()


def test_what_was_decoded_is_kept_up_to_the_limit(pairs, monkeypatch):
    read = []
    samples = open_data(str(pairs), "train")
    decode = samples.source.read
    monkeypatch.setattr(samples.source, "read", lambda index: read.append(index) or decode(index))
    samples.check()
    assert sorted(read) == list(range(20))
    kept = sum(samples[index].image is samples[index].image for index in range(20))
    assert kept == 2


def test_threads_find_what_one_finds(monkeypatch):
    def decode(index):
        if index % 7 == 3:
            raise BadInput(f"image {index}")

    found = []
    for threads in (1, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        look = FileCheck(600, progress=False)
        look.read_headers(lambda index: (1, 1))
        look.decode(decode)
        with pytest.raises(BadFiles) as error:
            look.finish()
        found.append(error.value.faults)
    assert found[0] == found[1] == tuple(f"image {index}" for index in range(3, 600, 7))


def test_classes_that_no_training_mask_shows_are_named(pairs):
    for path in pairs.glob("*/masks/*"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    told = Told()
    open_splits(Recipe(data=f"{pairs}?classes=free,scratch,void", steps=1), "segment", told)
    assert told.lines == ["note   no training mask that was read has a pixel of void"]


def test_palettes_that_differ_between_splits_are_refused(pairs):
    for split, colour in {"train": (255, 0, 0), "val": (0, 255, 0), "test": (255, 0, 0)}.items():
        for path in (pairs / split / "masks").iterdir():
            mask = Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8))
            mask.putpalette([0, 0, 0, *colour])
            mask.save(path)
    with pytest.raises(BadFiles, match=r"3 of 26 images .*val/masks/00\.png: shows index 1 as 00ff00"):
        open_splits(Recipe(data=str(pairs), steps=1), "segment", Told())
