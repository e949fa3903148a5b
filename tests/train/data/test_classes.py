"""The names of the classes: where they may stand, which place counts, and that no two may contradict."""

import numpy as np
import pytest
from PIL import Image

from leanconv.errors import BadInput
from leanconv.train.data.classes import class_names
from leanconv.train.data.samples import open_data

NAMES = ("background", "scratch", "pit")


@pytest.fixture
def root(tmp_path):
    return tmp_path


def names_file(root, text, name="classes.txt"):
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def test_where_they_may_stand(root):
    assert class_names("d", root) == ("background", "defect")
    assert class_names("d", root, given=NAMES) == NAMES
    assert class_names("d", root, given=3) == ("background", "class1", "class2")
    assert class_names("d", root, option="3") == ("background", "class1", "class2")
    assert class_names("d", root, option="ground,scratch,pit") == ("ground", "scratch", "pit")
    assert class_names("d", root, colours=(3, ())) == ("background", "class1", "class2")
    assert class_names("d", root, colours=(3, NAMES)) == NAMES
    assert class_names("d", root, apart=("pit", "scratch")) == ("background", "pit", "scratch")
    names_file(root, "background\n\n scratch \r\npit\n")
    assert class_names("d", root) == NAMES
    assert class_names("d", root, option="3") == NAMES
    assert class_names("d", root, given=3) == NAMES
    assert class_names("d", root, given=("ground", "a", "b")) == ("ground", "a", "b")
    names_file(root, "ground\na\nb\n", "other.txt")
    assert class_names("d", root / "elsewhere", option=str(root / "other.txt")) == ("ground", "a", "b")


def test_one_name_is_the_defects(root):
    assert class_names("d", names_file(root, "\ufeffscratch\n")) == ("background", "scratch")


def test_a_file_of_another_number_is_left_alone_where_the_number_is_said(tmp_path):
    names_file(tmp_path, "a\nb\nc\n")
    assert class_names("d", tmp_path, option="2") == ("background", "defect")
    assert class_names("d", tmp_path, colours=(2, ("x", "y"))) == ("x", "y")
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
        Image.new("L", (4, 4), 255).save(tmp_path / "train" / kind / "a.png")
    with pytest.raises(BadInput, match=r"the mask holds 255; classes=3 by classes\.txt takes the values 0 to 2"):
        open_data(str(tmp_path), "train")[0]
    assert open_data(f"{tmp_path}?classes=2", "train")[0].mask.all()


def test_masks_of_each_class_may_be_put_in_order(root):
    names_file(root, "\n".join(NAMES))
    assert class_names("d", root, apart=("pit", "scratch")) == NAMES
    with pytest.raises(BadInput, match="classes background, scratch, pit; its masks have scratch, stain"):
        class_names("d", root, apart=("scratch", "stain"))


@pytest.mark.parametrize(
    ("said", "file", "says"),
    [
        ({"given": 4, "option": "3"}, None, "the recipe or run says 4 classes, classes= 3"),
        ({"option": "3", "colours": (2, ())}, None, "classes= says 3 classes, colors= 2"),
        ({"apart": ("b", "c", "d")}, "a\nb\nc\n", r"classes\.txt says 3 classes, its masks 4 \(background, b, c, d\)"),
        ({"given": ("a", "b", "c"), "option": "a,c,b"}, None, "recipe or run are a, b, c, those of classes= a, c, b"),
        ({"given": ("a", "b", "c"), "option": "a,c,d"}, None, "those of classes= a, c, d: give both one order"),
        ({"given": ("a", "b", "c")}, "a\nc\nb\n", r"those of classes\.txt a, c, b: give both one order"),
        ({"option": "a,a"}, None, "2 to 255 different names"),
        ({"option": "a, "}, None, "2 to 255 different names"),
        ({"option": "1"}, None, "2 to 255"),
        ({"option": "256"}, None, "2 to 255"),
        ({"given": ("a",)}, None, "2 to 255"),
        ({}, "\n \n", r"classes\.txt: holds no name"),
        ({}, b"\xff\xfe\x00", r"classes\.txt: cannot be read as a list of names"),
        ({}, "x\n" * 40_000, r"classes\.txt: has 80,000 bytes"),
        ({}, "\n".join(map(str, range(300))), "2 to 255"),
    ],
    ids=str,
)
def test_contradictions_are_refused(root, said, file, says):
    if file is not None:
        names_file(root, file)
    with pytest.raises(BadInput, match=says) as error:
        class_names("d", root, **said)
    assert "\n" not in str(error.value)


def test_a_folder_of_that_name_is_no_list(root):
    (root / "classes.txt").mkdir()
    assert class_names("d", root) == ("background", "defect")


@pytest.fixture
def folder(tmp_path):
    """One image, and black and white masks of two classes; a pixel lies in both."""
    for kind in ("images", "masks/scratch", "masks/pit"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "train/images/a.png")
    masks = {name: np.zeros((4, 6), np.uint8) for name in ("scratch", "pit")}
    masks["scratch"][0, :4] = 255
    masks["pit"][:2, 3] = 255
    for name, mask in masks.items():
        Image.fromarray(mask).save(tmp_path / f"train/masks/{name}/a.png")
    return tmp_path


def test_a_folder_of_masks_for_each_class(folder):
    samples = open_data(str(folder), "train")
    samples.check(progress=False)
    assert samples.classes == ("background", "pit", "scratch")
    assert samples[0].mask.tolist() == [[2, 2, 2, 2, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6, [0] * 6]
    assert not samples.unseen()
    samples = open_data(str(folder), "train", classes=NAMES)
    assert samples[0].mask.tolist()[:2] == [[1, 1, 1, 2, 0, 0], [0, 0, 0, 2, 0, 0]]
    ordered = open_data(f"{folder}?classes=background,scratch,pit", "train")
    assert ordered[0].mask.equal(samples[0].mask)


def test_a_class_that_an_image_lacks(folder):
    (folder / "train/masks/pit/a.png").unlink()
    Image.new("RGB", (6, 4)).save(folder / "train/images/b.png")
    Image.new("L", (6, 4), 255).save(folder / "train/masks/pit/b.png")
    samples = open_data(str(folder), "train")
    assert [sorted(sample.mask.unique().tolist()) for sample in samples] == [[0, 2], [1]]
    Image.new("RGB", (6, 4)).save(folder / "train/images/c.png")
    with pytest.raises(BadInput, match=r"no mask for 1 of 3 images: c\.png; an image without a defect needs an all-bl"):
        open_data(str(folder), "train")


def test_masks_of_classes_with_grey_or_ignored_pixels(folder):
    mask = np.array(Image.open(folder / "train/masks/pit/a.png"))
    mask[3] = 7
    mask[0, 3] = 100
    Image.fromarray(mask).save(folder / "train/masks/pit/a.png")
    read = open_data(f"{folder}?threshold=90&ignore=7", "train")[0].mask.tolist()
    assert read == [[2, 2, 2, 2, 0, 0], [0, 0, 0, 1, 0, 0], [0] * 6, [255] * 6]
    for options, says in [
        ("colors=000000,ffffff,ff0000", "colors= is for one mask of all classes"),
        ("label=kind", "label= names a column of Parquet files"),
        ("classes=4", "classes= says 4 classes, its masks 3"),
    ]:
        with pytest.raises(BadInput, match=says):
            open_data(f"{folder}?{options}", "train")


def test_masks_of_one_image_of_two_sizes(folder):
    Image.new("L", (6, 5)).save(folder / "train/masks/scratch/a.png")
    with pytest.raises(BadInput, match=r"scratch/a\.png: the mask is 6x5 .* its image 6x4"):
        open_data(str(folder), "train").check(progress=False)


def table(path, labels, **more):
    pytest.importorskip("pyarrow")
    import io

    import pyarrow
    import pyarrow.parquet

    def png(picture):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return {"bytes": file.getvalue(), "path": ""}

    rows = [
        {"image": png(Image.new("RGB", (4, 4))), "mask": png(Image.new("L", (4, 4), 255)), "kind": k} for k in labels
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_a_column_says_the_class_of_black_and_white_masks(tmp_path):
    table(tmp_path / "train-0.parquet", ["scratch", "pit"])
    table(tmp_path / "val-0.parquet", ["bump"])
    samples = open_data(f"{tmp_path}?label=kind", "train")
    assert samples.classes == ("background", "bump", "pit", "scratch")
    assert [int(sample.mask.max()) for sample in samples] == [3, 2]
    ordered = open_data(f"{tmp_path}?label=kind", "val", classes=("ok", "scratch", "pit", "bump"))
    assert int(ordered[0].mask.min()) == 3
    with pytest.raises(BadInput, match="no column sort; it has image, mask, kind"):
        open_data(f"{tmp_path}?label=sort", "train")
    table(tmp_path / "test-0.parquet", [None])
    with pytest.raises(BadInput, match=r"test-0\.parquet, row 0: column kind holds 'None'"):
        open_data(f"{tmp_path}?label=kind", "train")


def test_real_steel(data_dir):
    samples = open_data(f"{data_dir / 'neu_seg_steel'}?label=label_name", "val")
    assert samples.classes == ("background", "inclusion", "patches", "scratches")
    found = [set(sample.mask.unique().tolist()) - {0} for sample in samples]
    assert sorted(map(tuple, found)) == [(1,)] * 12 + [(2,)] * 12 + [(3,)] * 12
