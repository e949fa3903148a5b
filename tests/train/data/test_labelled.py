"""Labelled images: every layout read, every kind of bad input one clear line, batches as they should be."""

import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from leanconv.errors import BadInput, LeanconvError, UnknownName
from leanconv.train.data.augment import to_float
from leanconv.train.data.batches import Order
from leanconv.train.data.crops import Crops, memory_batch
from leanconv.train.data.labelled import Picture, prepared
from leanconv.train.data.light import relit
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.splits import NoSplit
from leanconv.train.tasks.task import find_task


def png(colour, size=(10, 10), mode="RGB"):
    import io

    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "JPEG" if mode == "CMYK" else "PNG")
    return out.getvalue()


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "things"
    for split, count in {"train": 6, "val": 2, "test": 3}.items():
        for place, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                (root / split / name / f"{index}.png").write_bytes(png((100 * place, index, 7)))
    return root


def table(path, labels, *, split="train", names=None, images=None):
    path.mkdir(exist_ok=True)
    images = images or [png((index, 0, 0)) for index in range(len(labels))]
    columns = {"image": [{"bytes": image, "path": "x.png"} for image in images], "label": labels}
    pq.write_table(pa.table(columns | ({"label_name": names} if names else {})), path / f"{split}-0.parquet")
    return str(path)


def test_class_folders(folders):
    train = open_labelled(str(folders), "train", size=10)
    assert (train.classes, len(train), train.labels.tolist()) == (("ant", "bee"), 12, [0] * 6 + [1] * 6)
    train.check(progress=False)
    assert train.images.shape == (12, 3, 10, 10)
    assert train[8].image[:, 0, 0].tolist() == [100, 2, 7]
    assert train[8].name == "bee/2"
    assert find_task(str(folders)) == "classify"


def test_an_undivided_folder_is_divided_and_a_missing_val_split_is_held_out(folders, tmp_path):
    parts = [open_labelled(str(folders / "train"), split, size=10) for split in ("train", "val", "test")]
    names = [name for part in parts for name in part.source.names]
    assert len(names) == len(set(names)) == 12
    assert "is not divided" in parts[0].note
    data = table(tmp_path / "p", [0, 1, 2] * 10)
    train, val = (open_labelled(f"{data}?val=0.2", split, size=10) for split in ("train", "val"))
    assert (len(train), sorted(val.labels.tolist())) == (24, [0, 0, 1, 1, 2, 2])
    reds = [int(part[i].image[0, 0, 0]) for part in (train, val) for i in range(len(part))]
    assert sorted(reds) == list(range(30))
    assert len(open_labelled(f"{data}?val=0", "train", size=10)) == 30
    with pytest.raises(NoSplit, match="no val split; it has train"):
        open_labelled(f"{data}?val=0", "val", size=10)


def test_parquet_names_and_words(tmp_path):
    named = open_labelled(table(tmp_path / "a", [2, 0, 0, 2], names=["cat", "ox", "ox", "cat"]), "train", size=10)
    assert named.classes == ("ox", "1", "cat")
    words = open_labelled(table(tmp_path / "b", ["free", "crack", "crack", "free"]) + "?val=0", "train", size=10)
    assert (words.classes, words.labels.tolist()) == (("crack", "free"), [1, 0, 0, 1])
    twice = open_labelled(table(tmp_path / "c", [0, 1, 0, 1], names=["crane"] * 4) + "?val=0", "train", size=10)
    assert twice.classes == ("crane (0)", "crane (1)")
    assert find_task(str(tmp_path / "a")) == "classify"


def _corrupt(root, folders):
    (folders / "val" / "bee" / "1.png").write_bytes(png((1, 2, 3))[:45])
    return str(folders), r"val/bee/1\.png"


def _empty(root, folders):
    (folders / "train" / "cow").mkdir()
    return str(folders), "train/cow: no images .*: an empty class"


def _one(root, folders):
    return table(root / "p", [0, 0, 0]), "at least two classes, found 1"


def _out_of_range(root, folders):
    return table(root / "p", [0, 1, 7]) + "?classes=3", r"row 2: label 7: the classes are 0 to 2"


def _negative(root, folders):
    return table(root / "p", [0, 1, -1]), r"row 2: label -1: the classes are 0 to 1"


def _no_label(root, folders):
    return table(root / "p", [0, 1, None]), "row 2: label None"


def _fraction(root, folders):
    return table(root / "p", [0.0, 1.0, 0.5]), r"row 0: label 0\.0: a class is a whole number"


def _lists(root, folders):
    return table(root / "p", [[0], [1]]), r"row 0: label \[0\]: a class is a whole number"


def _words_and_numbers(root, folders):
    table(root / "p", [0, 1], split="val")
    return table(root / "p", ["ant", "bee"]), "val-0.parquet, row 0: label 0: other files have words such as 'ant'"


def _masks(root, folders):
    return "synthetic:wafer", "has masks, and classification needs a class"


def _rare_folder(root, folders):
    for path in [*(folders / "val").glob("*/*"), *(folders / "train/bee").glob("[1-9].png")]:
        path.unlink()
    for path in [*(folders / "val").iterdir(), folders / "val"]:
        path.rmdir()
    return str(folders), "class bee has one training image"


def _beyond_all(root, folders):
    return table(root / "p", [0, 10**12]), r"label 1000000000000: the classes are 0 to 999999$"


def _strip(root, folders):
    images = [png((1, 2, 3)), png((1, 2, 3)), png((1, 2, 3), (800_000, 1)), png((1, 2, 3))]
    return table(root / "p", [0, 1, 0, 1], images=images), r"row 2: 800000x1 pixels would be 8000000x10"


def _share(root, folders):
    return f"{folders}?val=2", "from 0 to below 1"


def _option(root, folders):
    return f"{folders}?clases=2", "did you mean 'classes'"


def _count(root, folders):
    return f"{folders}?classes=5", "has 2 class folders"


def _nowhere(root, folders):
    return str(root / "none"), "no such folder"


def _rare(root, folders):
    return table(root / "p", [0, 0, 1]), "class 1 has one training image"


def _set(root, folders):
    return "torchvision:CIFAR11", "did you mean 'CIFAR10'"


def _not_downloaded(root, folders):
    return f"torchvision:CIFAR10?root={root}", "say root=DIR, or &download=true"


BAD = (
    _corrupt, _empty, _one, _out_of_range, _negative, _no_label, _fraction, _strip, _share, _option, _count, _nowhere,
    _lists, _words_and_numbers, _masks, _rare_folder, _beyond_all,
    _rare, _set, _not_downloaded,
)  # fmt: skip


def _read(ref):
    for split in ("train", "val"):
        open_labelled(ref, split, size=10).check(progress=False)


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_input_is_one_clear_line(tmp_path, folders, make):
    ref, says = make(tmp_path, folders)
    with pytest.raises(LeanconvError, match=says) as caught:
        _read(ref)
    assert "\n" not in str(caught.value)


def test_a_split_nobody_knows(folders):
    with pytest.raises(UnknownName, match="did you mean 'train'"):
        open_labelled(str(folders), "trian", size=10)


def test_torchvision(tmp_path, monkeypatch):
    """Files as CIFAR-10's, twenty pictures, with checksums of their own."""
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 3072), dtype=np.uint8)
    sums = {}
    files = {
        "data_batch_1": {"data": pixels, "labels": list(range(10)) * 2},
        "test_batch": {"data": pixels, "labels": [3] * 20},
        "batches.meta": {"label_names": [f"n{k}" for k in range(10)]},
    }
    for name, content in files.items():
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    train = open_labelled(f"torchvision:CIFAR10?root={tmp_path}&val=0", "train", size=32)
    assert (len(train), train.classes[3], train.labels.tolist()) == (20, "n3", list(range(10)) * 2)
    assert torch.equal(train[4].image, torch.from_numpy(pixels[4].reshape(3, 32, 32)))
    assert open_labelled(f"torchvision:CIFAR10?root={tmp_path}", "test", size=32).labels.tolist() == [3] * 20
    assert find_task("torchvision:CIFAR10") == "classify"


def test_what_a_network_sees():
    picture = torch.arange(3 * 40 * 60, dtype=torch.uint8).view(3, 40, 60)
    assert prepared(picture, 35).shape == (3, 35, 35)  # 40 = 8/7 of 35: cut, not resized
    assert torch.equal(prepared(picture, 35), picture[:, 2:37, 12:47])
    assert prepared(picture, 64).shape == prepared(picture[:, :, :9], 64).shape == (3, 64, 64)
    assert prepared(picture[:, :40, :40], 40) is not None


def test_batches_are_shifted_mirrored_and_depend_on_the_seed_alone(tmp_path):
    data = table(tmp_path / "p", [0, 1] * 8, images=[png((index * 9 + 5, 1, 2), (16, 16)) for index in range(16)])
    samples = open_labelled(f"{data}?val=0", "train", size=16)
    samples.check(progress=False)
    samples.images[:, 1] = torch.arange(16, dtype=torch.uint8) + 100  # every column says where it was
    crops, order = Crops(16), Order(16, 8, seed=3)
    seen = [memory_batch(samples, crops, order, step) for step in range(4)]
    again = [memory_batch(samples, crops, order, step) for step in (2, 3)]
    assert all(torch.equal(a, b) for x, y in zip(seen[2:], again, strict=True) for a, b in zip(x, y, strict=True))
    for step, (images, labels) in enumerate(seen):
        for image, label, index in zip(images, labels, order.images(step), strict=True):
            red, column = ((image[k] * 0.25 + 0.5) * 255 for k in (0, 1))
            inside = red[8] > 2
            assert red[8][inside].unique().round().tolist() == [index * 9 + 5]
            steps = column[8][inside].diff().round().unique().tolist()
            assert steps in ([1.0], [-1.0])
            assert int(label) == index % 2
            assert 12 * 12 <= int((red > 2).sum()) <= 256
    shares = [Crops(16).squares(samples.images[r::2][:4], 7, r, 2) for r in (0, 1)]
    whole = Crops(16).squares(samples.images[:8], 7)
    assert torch.equal(whole[0::2], shares[0])
    assert torch.equal(whole[1::2], shares[1])


def test_both_sides_are_mirrored_equally_often():
    images = torch.zeros(4000, 3, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    mirrored = Crops(8).squares(images, 0)[:, 0, 4, 1] > 0
    assert 0.45 < mirrored.float().mean() < 0.55
    assert not (Crops(8, flips=False).squares(images, 0)[:, 0, 4, 1] > 0).any()
    assert torch.equal(Crops(8, augment=False).squares(images[:3], 0), (images[:3] / 255 - 0.5) / 0.25)


def test_light_is_torchvisions():
    from torchvision.transforms.v2 import functional as F

    images = torch.randint(0, 256, (3, 3, 9, 9), dtype=torch.uint8)
    b, c, s = torch.tensor([[1.2, 0.8, 1.0], [0.9, 1.1, 1.3], [0.7, 1.2, 1.0]])
    ours = relit(images, b, c, s)
    for k in range(3):
        theirs = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(images[k], b[k]), c[k]), s[k])
        assert (ours[k].int() - theirs.int()).abs().max() <= 3  # torchvision rounds down after each


def test_photographs_are_decoded_one_by_one(folders):
    for path in folders.glob("*/*/*.png"):
        path.write_bytes(png((50, 60, 70), (130, 100)))
    samples = open_labelled(str(folders), "train", size=32)
    samples.check(progress=False)
    assert samples.images is None
    assert samples.square(3).shape == (3, 32, 32)
    images, labels = Crops(32, light=0.2).batch([samples[7], samples[0]], [3, 4])
    assert (images.shape, labels.tolist()) == ((2, 3, 32, 32), [1, 0])


@pytest.mark.parametrize("size", [(130, 100), (20, 300), (300, 20), (1, 1), (32, 32)])
def test_photographs_are_augmented_as_by_torchvision(size):
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3),
        ]
    )
    seen, _ = Crops(32, light=0.3).batch([Picture(image, 0, "x")] * 30, list(range(30)))
    for seed in range(30):
        torch.manual_seed(seed)
        assert torch.equal(seen[seed], to_float(transform(image)))


def test_real_sets(data_dir):
    svhn = open_labelled(f"{data_dir / 'svhn_subset'}?val=0", "train", size=32)
    svhn.check(progress=False)
    assert svhn.labels.bincount().tolist() == [150] * 10
    tiny = open_labelled(str(data_dir / "tiny_imagenet_subset"), "val", size=64)
    assert (len(tiny), len(tiny.classes)) == (500, 50)
    with pytest.raises(BadInput, match="it has train, val"):
        open_labelled(str(data_dir / "tiny_imagenet_subset"), "test", size=64)
    photos = open_labelled(f"{data_dir / 'imagenet_sample'}?classes=1000", "test", size=224)
    assert (len(photos.classes), photos.square(0).shape) == (1000, (3, 224, 224))
    assert find_task(str(data_dir / "magnetic_tile_defects")) == "segment"


def test_linked_folders_are_entered_once(folders):
    (folders / "test/bee/more").symlink_to(folders / "train/bee")
    (folders / "test/bee/back").symlink_to(folders / "test/bee")
    test = open_labelled(str(folders), "test", size=10)
    assert test.labels.tolist().count(1) == 3 + 6
    assert len(set(test.source.names)) == len(test)


def test_classes_without_training_images_are_said(folders, tmp_path):
    assert not open_labelled(str(folders), "train", size=10).note
    gaps = table(tmp_path / "gaps", [0, 3] * 4)
    assert "2 of 4 classes have no training images: 1, 2" in open_labelled(gaps, "train", size=10).note
