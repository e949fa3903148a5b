"""Folders called train, Training or TEST are splits and no classes; what can be read in two ways is refused."""

import os

import numpy as np
import pytest
from PIL import Image

from leanconv.errors import BadInput
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.samples import open_data
from leanconv.train.data.splits import NoSplit, holds_parquet, meaning, parquet_files, split_by_name, split_of
from leanconv.train.tasks.task import find_task, open_split

NFC, NFD = "caf\u00e9", "cafe\u0301"


def put(root, *names, size=4):
    """Grey pictures of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((size, size), np.uint8)).save(root / name)
    return root


def open_train(ref):
    return open_split(ref, "train", task=find_task(ref), size=8)


def classes_of(ref, **options):
    samples = open_labelled(str(ref), options.pop("split", "train"), size=8)
    return samples.classes, len(samples), samples.note


@pytest.mark.parametrize(
    ("split", "names"),
    {
        "train": [
            "train",
            "TRAIN",
            "Training",
            "train_set",
            "trainset",
            "training data",
            "Train-2",
            "train2017",
            "trn",
        ],
        "val": ["val", "VAL", "valid", "Validation", "dev", "validation_split", "val2017", "dev.set"],
        "test": ["test", "Testing", "TEST", "test_set", "test1", "testset", "Test Data"],
        "": [
            "trains",
            "testament",
            "valley",
            "steam_train",
            "cat",
            "",
            "2017",
            "devon",
            "data",
            "tést",
            "unittest",
            "os",
        ],
    }.items(),
)
def test_names_of_splits(split, names):
    assert {name: split_of(name) for name in names} == dict.fromkeys(names, split)


def test_names_with_a_role_are_no_splits():
    assert meaning("train_images") == ("train", "images")
    assert meaning("Masks-Test") == ("test", "masks")
    assert meaning("LABELS") == ("", "labels")
    assert meaning("with_mask") == meaning("mask_image") == ("", "")
    assert split_of("train_images") == ""


SPELLINGS = [
    ("train", "val", "test"), ("Training", "Validation", "Testing"), ("TRAIN", "VAL", "TEST"),
    ("training_set", "dev", "test_set"), ("train2017", "val2017", "test2017"), ("Train", "valid", "TESTING"),
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS, ids="/".join)
def test_splits_of_class_folders(tmp_path, spelling):
    for place, name in enumerate(spelling):
        put(tmp_path, *(f"{name}/{each}/{i}.png" for each in ("bad", "good") for i in range(3 - place)))
    assert find_task(str(tmp_path)) == "classify"
    for place, split in enumerate(("train", "val", "test")):
        assert classes_of(tmp_path, split=split) == (("bad", "good"), 2 * (3 - place), "")


@pytest.mark.parametrize("spelling", SPELLINGS, ids="/".join)
@pytest.mark.parametrize("layout", ["{split}/images/{i}.png", "images/{split}/{i}.png", "{split}/IMAGES/{i}.png"])
def test_splits_of_images_and_masks(tmp_path, spelling, layout):
    for place, name in enumerate(spelling):
        for path in (layout.format(split=name, i=i) for i in range(3 - place)):
            put(tmp_path, path, path.replace("images", "masks").replace("IMAGES", "Masks"))
    assert find_task(str(tmp_path)) == "segment"
    for place, split in enumerate(("train", "val", "test")):
        samples = open_data(str(tmp_path), split)
        assert list(samples.source.names) == [str(i) for i in range(3 - place)]
        assert samples.note == ""


def test_images_and_masks_may_spell_a_split_in_two_ways(tmp_path):
    put(
        tmp_path,
        *(f"images/{split}/1.png" for split in ("Train", "VAL")),
        "masks/train/1.png",
        "masks/validation/1.png",
    )
    assert len(open_data(str(tmp_path), "train")) == len(open_data(str(tmp_path), "val")) == 1


@pytest.mark.parametrize(
    ("images", "masks"), [("Images", "Masks"), ("image", "mask"), ("IMG", "MASKS"), ("imgs", "masks")]
)
def test_images_and_masks_are_no_classes_however_they_are_spelt(tmp_path, images, masks):
    put(tmp_path, *(f"{folder}/{i}.png" for folder in (images, masks) for i in range(9)))
    assert find_task(str(tmp_path)) == "segment"
    assert sum(len(open_data(str(tmp_path), split)) for split in ("train", "val", "test")) == 9


# What lies there (pictures, where it has no suffix), and what is said of it.
TWO_WAYS = {
    "two spellings": ("Train/a/1 Train/b/1 train/a/1 train/b/2", "Train/ and train/ are both the train split"),
    "val and dev": ("val/a/1 val/b/1 dev/a/1 dev/b/2", "dev/ and val/ are both the val split"),
    "a vehicle": ("train/1 car/1 bus/1", "train/ may be splits or classes"),
    "no classes": ("train/1 test/1", "train/, test/ may be splits or classes"),
    "prefixes": ("seg_train/a/1 seg_test/a/1 seg_pred/1", "seg_test/ and seg_train/ look like splits"),
    "suffixes": ("cats_train/1 cats_test/1 dogs_train/1", "cats_test/ and cats_train/ look like splits"),
    "joined words": ("trainImages/1 testImages/1", "testImages/ and trainImages/ look like splits"),
    "a letter more": ("trainA/1 trainB/1 testA/1 testB/1", "testA/ and trainA/ look like splits"),
    "unknown words": ("learn/a/1 learn/b/1 check/a/1 check/b/1", r"check/, learn/ hold the same folders \(a, b\)"),
    "folds": ("fold1/a/1 fold1/b/1 fold2/a/1 fold2/b/1 fold2/c/1", r"hold the same folders \(a, b\), as splits do"),
    "pascal voc": ("JPEGImages/1 SegmentationClass/1", "JPEGImages/ and SegmentationClass/ look like images and"),
    "nnu-net": ("imagesTr/1 imagesTs/1 labelsTr/1", "imagesTr/ and labelsTr/ look like images and their masks"),
    "mmsegmentation": ("img_dir/train/1 ann_dir/train/1", "img_dir/ and ann_dir/ look like images and their masks"),
    "cityscapes": ("leftImg8bit/1 gtFine/1", "leftImg8bit/ and gtFine/ look like images and their masks"),
    "a label": ("image/1 label/1", "image/ and label/ look like images and their masks"),
    "inputs, divided": ("train/inputs/1 train/targets/1", "inputs/ and targets/ look like images and their masks"),
    "one folder more": ("all/a/1 all/b/1", "found 1: all; if its folders are the classes, give"),
    "one class": ("a/1 a/2 a/3", "at least two classes, found 1: a$"),
    "no class": ("1 2 3", "no folder images/ and no folder masks/"),
    "an empty class": ("train/a/1 train/b/1 train/c/x/y.txt", r"train/c: no images \(it has \.txt 1; PNG"),
    "a split without": ("train/a/1 train/b/1 test/1", "test: no class folders with images"),
    "a class in capitals": ("train/Cat/1 train/b/1 val/cat/1 val/b/1", "differ in capitals alone"),
    "two forms": (f"train/{NFC}/1 train/{NFD}/1 train/b/1", "one name in two Unicode forms"),
    "spelt masks": ("train_images/1 train_labels/1", "no folder images/ and no folder masks/"),
    "labels": ("images/1 Labels/1", "no folder masks/.*if Labels/ holds the masks, call it masks/"),
    "twice divided": ("images/train/1 masks/train/1 train/images/1 train/masks/1", "train/images/ and images/ as well"),
    "whole and divided": ("images/1 masks/1 Train/images/1 Train/masks/1", "keep one of the two"),
    "two of images": ("Images/1 images/1 masks/1", "Images/ and images/ may both be its images"),
    "twice a split": ("images/Train/1 images/train/1 masks/train/1", "Train/ and train/ are both the train split"),
}


@pytest.mark.parametrize(("names", "message"), TWO_WAYS.values(), ids=TWO_WAYS.keys())
def test_a_layout_that_can_be_read_in_two_ways_is_refused(tmp_path, names, message):
    for name in names.split():
        if "." in name:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text("")
        else:
            put(tmp_path, f"{name}.png")
    with pytest.raises(BadInput, match=message):
        open_train(str(tmp_path))


@pytest.mark.parametrize(
    "names", [("train", "car"), ("test", "train"), ("Training", "training"), ("seg_train", "seg_test")]
)
def test_classes_that_are_really_called_so(tmp_path, names):
    put(tmp_path, *(f"{name}/{i}.png" for name in names for i in range(9)))
    assert find_task(f"{tmp_path}?divided=false") == "classify"
    classes, _, note = classes_of(f"{tmp_path}?divided=false")
    assert classes == tuple(sorted(names))
    assert "is not divided" in note
    with pytest.raises(BadInput, match="true; or false where folders called train or test are no splits"):
        classes_of(f"{tmp_path}?divided=no")


@pytest.mark.parametrize("names", [("with_mask", "without_mask"), ("tester", "train_driver"), ("photo", "label")])
def test_classes_that_look_like_nothing_else(tmp_path, names):
    put(tmp_path, *(f"{name}/{inner}{i}.png" for name in names for inner in ("", "sub/") for i in range(9)))
    assert classes_of(tmp_path)[0] == names[:: 1 if names[0] < names[1] else -1]


def test_names_that_are_no_utf8_are_classes_and_images_as_others_are(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    put(tmp_path, *(f"train/{name}/{odd}{i}.png" for name in (odd, "b") for i in range(9)))
    assert classes_of(tmp_path)[:2] == (("b", odd), 16)
    (tmp_path / "train").rename(tmp_path / "all")
    assert classes_of(tmp_path / "all")[0] == ("b", odd)


def test_classes_of_a_split_may_be_called_as_a_split(tmp_path):
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in ("test", "train", "Test")))
    assert classes_of(tmp_path)[0] == ("Test", "test", "train")


def test_images_that_lie_in_a_folder_called_test(tmp_path):
    put(tmp_path, *(f"{kind}/{i}.png" for kind in ("images", "masks") for i in range(9)), "images/test/1.png")
    with pytest.raises(NoSplit, match="it has test"):
        open_data(str(tmp_path), "train")
    samples = open_data(f"{tmp_path}?divided=false", "train")
    assert len(samples) > 5
    assert "left out: 1 folder (test)" in samples.note


def test_letters_may_be_classes_in_both_cases(tmp_path):
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val") for name in "aAbB"))
    assert classes_of(tmp_path)[0] == ("A", "B", "a", "b")


def test_a_class_in_two_unicode_forms_is_one(tmp_path):
    put(tmp_path, f"train/{NFC}/1.png", "train/b/1.png", f"val/{NFD}/1.png", "val/b/1.png")
    assert classes_of(tmp_path)[0] == ("b", NFC)
    assert open_labelled(str(tmp_path), "val", size=8).labels.tolist() == [0, 1]


@pytest.mark.parametrize("junk", [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", "System Volume Information"])
def test_folders_of_systems_are_neither_classes_nor_splits(tmp_path, junk):
    put(
        tmp_path,
        *(f"train/{name}/1.png" for name in "ab"),
        f"{junk}/train/1.png",
        f"train/{junk}/1.png",
        f"train/a/{junk}/2.png",
    )
    assert classes_of(f"{tmp_path}?val=0") == (("a", "b"), 2, "")
    pairs = put(tmp_path / "pairs", *(f"{kind}/{i}.png" for kind in ("images", "masks") for i in range(9)))
    put(pairs, f"{junk}/images/1.png", f"images/{junk}/1.png", "images/._1.png")
    (pairs / "images/Thumbs.db").write_text("")
    assert "left out" not in open_data(str(pairs), "train").note


def test_what_is_left_out_is_said(tmp_path):
    put(
        tmp_path,
        *(f"{split}/{name}/1.png" for split in ("train", "val") for name in "ab"),
        "train/3.png",
        "extra/1.png",
    )
    for name in ("train/a/2.heic", "train/a/3.HEIC", "train/b/deep/noted", "val/b/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    note = classes_of(tmp_path)[2]
    assert note == "left out: 5 files (.heic 2, .png 1, no suffix 1, .txt 1), 1 folder (extra)"


def test_what_is_left_out_of_images_and_masks_is_said(tmp_path):
    put(tmp_path, *(f"train/{kind}/1.png" for kind in ("images", "masks")), "train/2.png", "test/1.png")
    (tmp_path / "train/images/1.heic").write_text("")
    (tmp_path / "train/images/part").mkdir()
    note = open_data(str(tmp_path), "train").note
    assert note == "left out: 2 files (.heic 1, .png 1), 2 folders (test, part)"


def test_links_that_lead_back_up(tmp_path):
    put(tmp_path, *(f"train/{name}/1.png" for name in "ab"))
    (tmp_path / "train/a/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "train/itself").symlink_to(tmp_path / "train/itself")
    assert classes_of(f"{tmp_path}?val=0")[:2] == (("a", "b"), 2)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    """Root may read every one, so the system's refusal is played."""
    put(tmp_path, *(f"train/{name}/1.png" for name in "ab"))
    listed = os.scandir

    def refuse(path):
        if str(path).endswith("train/a"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(BadInput, match="train/a: cannot be listed: Permission denied"):
        classes_of(tmp_path)


PARQUET = {
    "train-0.parquet": "train", "TRAIN.parquet": "train", "Training-00-of-01.PARQUET": "train",
    "train_1.parquet": "train",
    "validation-0.parquet": "val", "dev.parquet": "val", "test_set-1.parquet": "test",
}  # fmt: skip


@pytest.mark.parametrize(("name", "split"), PARQUET.items())
def test_splits_of_parquet_files(tmp_path, name, split):
    (tmp_path / name).write_text("")
    (tmp_path / "images.parquet").write_text("")
    assert holds_parquet(tmp_path)
    assert parquet_files(tmp_path, split) == [tmp_path / name]
    with pytest.raises(BadInput, match="divided=false is about folders, which this data has not"):
        open_data(f"{tmp_path}?divided=false", split)
    with pytest.raises(NoSplit, match=f"it has {split}"):
        parquet_files(tmp_path, "test" if split == "train" else "train", needed=True)


def test_two_spellings_of_one_split_are_refused(tmp_path):
    for name in ("train-0.parquet", "train-1.parquet", "train2.parquet"):
        (tmp_path / name).write_text("")
    assert len(parquet_files(tmp_path, "train")) == 3
    (tmp_path / "Training-0.parquet").write_text("")
    with pytest.raises(BadInput, match=r"Training\*.parquet and train\*.parquet are all the train split"):
        parquet_files(tmp_path, "train")


def test_a_table_beside_images_is_no_split_and_splits_beside_images_are_refused(tmp_path):
    put(tmp_path, *(f"{kind}/{i}.png" for kind in ("images", "masks") for i in range(9)))
    (tmp_path / "facts.parquet").write_text("")
    assert find_task(str(tmp_path)) == "segment"
    assert len(open_data(str(tmp_path), "train")) > 5
    (tmp_path / "train-0.parquet").write_text("")
    with pytest.raises(BadInput, match="holds Parquet splits and images/"):
        open_data(str(tmp_path), "train")


def test_a_name_has_one_split_in_both_unicode_forms():
    names = [f"{NFC}{i}" for i in range(50)]
    others = [f"{NFD}{i}" for i in range(50)]
    there, here = split_by_name(names), split_by_name(others)
    assert here["test"] == {name.replace(NFC, NFD) for name in there["test"]}
