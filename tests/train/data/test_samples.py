"""Data from folders and Parquet: what is read is what was written, and every bad file is one clear line."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from leanconv.errors import BadInput, UnknownName
from leanconv.train.data import samples as room
from leanconv.train.data.decode import MAX_PIXELS, read_header
from leanconv.train.data.image_reader import read_image
from leanconv.train.data.masks import read_mask
from leanconv.train.data.padding import mirror
from leanconv.train.data.samples import open_data
from leanconv.train.data.splits import split_by_name


def picture(seed=0, h=20, w=30):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def binary(seed=0, h=20, w=30):
    return (np.random.default_rng(seed).random((h, w)) < 0.3).astype(np.uint8) * 255


def put(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def folder(root, names=("a", "b", "c"), suffix="png"):
    for i, name in enumerate(names):
        put(root / "images" / f"{name}.{suffix}", picture(i))
        put(root / "masks" / f"{name}.png", binary(i))
    return root


def encoded(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, options.pop("format", "PNG"), **options)
    return file.getvalue()


def parquet(path, columns):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def png_header(width, height):
    """A PNG that claims a size and holds nothing: a decompression bomb in 60 bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# What is read is what was written


def test_a_folder_gives_the_pixels_and_the_mask(tmp_path):
    for split in ("train", "val"):
        folder(tmp_path / split)
    samples = open_data(str(tmp_path), "val")
    samples.check()
    assert len(samples) == 3
    assert samples.classes == ("background", "defect")
    assert not samples.note
    for i, sample in enumerate(samples):
        assert sample.name == samples.name(i) == "abc"[i]
        assert (sample.image.dtype, sample.mask.dtype) == (torch.uint8, torch.uint8)
        np.testing.assert_array_equal(sample.image.permute(1, 2, 0), picture(i))
        np.testing.assert_array_equal(sample.mask, binary(i) // 255)
    with pytest.raises(BadInput, match="no test split; it has train, val"):
        open_data(str(tmp_path), "test")


def test_the_other_layout_and_the_other_names_of_val(tmp_path):
    for i, split in enumerate(("train", "validation", "test")):
        put(tmp_path / "images" / split / "x.png", picture(i))
        put(tmp_path / "masks" / split / "x.png", binary(i))
    np.testing.assert_array_equal(open_data(str(tmp_path), "val")[0].mask, binary(1) // 255)


def test_parquet_gives_the_same(tmp_path):
    images, masks = [encoded(picture(i)) for i in range(3)], [encoded(binary(i)) for i in range(3)]
    files = [[{"bytes": b, "path": f"p{i}.png"} for i, b in enumerate(each)] for each in (images, masks)]
    parquet(tmp_path / "train-00000-of-00002.parquet", {"image": files[0], "mask": files[1]})
    parquet(tmp_path / "train-00001-of-00002.parquet", {"image": images[:1], "mask": masks[:1], "name": ["own"]})
    parquet(tmp_path / "validation-0.parquet", {"image": images, "mask": masks})
    samples = open_data(str(tmp_path), "train")
    samples.check()
    assert [s.name for s in samples] == ["p0", "p1", "p2", "own"]
    np.testing.assert_array_equal(samples[1].image.permute(1, 2, 0), picture(1))
    np.testing.assert_array_equal(samples[3].mask, binary(0) // 255)
    assert [s.name for s in open_data(str(tmp_path), "val")] == ["000000", "000001", "000002"]
    with pytest.raises(BadInput, match="no test split"):
        open_data(str(tmp_path), "test")


@pytest.mark.parametrize("name", ["wafer_surface_defects", "magnetic_tile_defects", "neu_seg_steel"])
def test_the_real_images(data_dir, name):
    samples = open_data(str(data_dir / name), "val")
    samples.check()
    fractions = [float(s.mask.float().mean()) for s in samples]
    assert all(set(s.mask.unique().tolist()) <= {0, 1} for s in samples)
    assert 0.08 < np.mean(fractions) < 0.18  # the folders' READMEs: .163, .104, .121


def test_an_undivided_folder_is_divided_by_name_and_says_so(tmp_path):
    names = [f"n{i}" for i in range(40)]
    folder(tmp_path, names)
    splits = {split: open_data(str(tmp_path), split) for split in room.SPLITS}
    found = {split: {s.name for s in samples} for split, samples in splits.items()}
    assert sorted(name for each in found.values() for name in each) == sorted(names)
    assert "by a hash of the names" in splits["val"].note
    assert found == split_by_name(names)
    assert {s: len(n) for s, n in split_by_name([f"x{i}" for i in range(5000)]).items()} == pytest.approx(
        {"train": 4000, "val": 500, "test": 500}, rel=0.1
    )
    more = split_by_name([*names, *(f"new{i}" for i in range(40))])
    assert all(found[split] <= more[split] for split in room.SPLITS)  # nothing trained on becomes test


@pytest.mark.parametrize("count", [3, 4, 7])
def test_small_sets_have_every_split(count):
    assert all(split_by_name([str(i) for i in range(count)]).values())
    with pytest.raises(BadInput, match="at least 3"):
        split_by_name(["a", "b"])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P"])
def test_every_usual_mode_becomes_three_channels(mode):
    source = Image.fromarray(picture()).convert(mode)
    file = io.BytesIO()
    source.save(file, "PNG")
    np.testing.assert_array_equal(read_image(file.getvalue(), "x").permute(1, 2, 0), np.asarray(source.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_by_a_constant():
    grey = np.array([[0, 257, 65535], [1000, 40000, 20000]], np.uint16)
    image = read_image(encoded(grey), "x")
    np.testing.assert_array_equal(image, np.broadcast_to(grey // 257, (3, 2, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_turns_the_picture(orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(picture(), exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stored))))
    assert read_header(stored, "x").size == upright.shape[:2]
    np.testing.assert_array_equal(read_image(stored, "x").permute(1, 2, 0), upright)


def test_masks_of_every_binary_kind_read_the_same():
    truth = binary() // 255
    ones = [
        encoded(truth),
        encoded(truth * 255),
        encoded(truth.astype(bool)),
        encoded(np.repeat(truth[..., None], 3, 2)),
    ]
    swapped = Image.fromarray(1 - truth)  # a palette with white first, as shrinking tools make it
    swapped.putpalette([255, 255, 255, 0, 0, 0])
    colours = Image.fromarray(truth)
    colours.putpalette([0, 0, 0, 128, 0, 0])
    for each in (swapped, colours):
        file = io.BytesIO()
        each.save(file, "PNG")
        ones.append(file.getvalue())
    ones += [
        encoded(truth.astype(np.uint16) * 65535),
        encoded(truth, format="TIFF"),
        encoded(truth * 255, format="BMP"),
    ]
    for i, stored in enumerate(ones):
        np.testing.assert_array_equal(read_mask(stored, "x"), truth, err_msg=str(i))
    for value in (0, 1, 255):
        blank = read_mask(encoded(np.full((4, 5), value, np.uint8)), "x")
        assert blank.eq(value > 0).all()


def test_class_indices_and_soft_masks(tmp_path):
    put(tmp_path / "train/images/a.png", picture())
    indices = (np.arange(600).reshape(20, 30) % 4).astype(np.uint8)
    put(tmp_path / "train/masks/a.png", indices)
    samples = open_data(f"{tmp_path}?classes=4", "train")
    assert samples.classes == ("background", "class1", "class2", "class3")
    np.testing.assert_array_equal(samples[0].mask, indices)
    assert open_data(f"{tmp_path}?classes=ground,scratch,stain,void", "train").classes[3] == "void"
    np.testing.assert_array_equal(open_data(f"{tmp_path}?threshold=2", "train")[0].mask, indices >= 2)
    with pytest.raises(BadInput, match=r"a\.png: the mask holds 0, 1, 2, 3; classes=3 takes the values 0 to 2"):
        open_data(f"{tmp_path}?classes=3", "train")[0]


# Every bad file is one clear line


def spoil(root, kind):
    """Make one thing wrong in a good folder `root/train`."""
    image, mask = root / "train/images/b.png", root / "train/masks/b.png"
    content = image.read_bytes()
    if kind == "corrupt":
        image.write_bytes(b"this is no image at all")
    elif kind == "truncated":
        image.write_bytes(content[: len(content) // 2])
    elif kind == "truncated mask":
        put(mask, np.random.default_rng(0).integers(0, 2, (20, 30), np.uint8) * 255)
        mask.write_bytes(mask.read_bytes()[:90])
    elif kind == "empty file":
        image.write_bytes(b"")
    elif kind == "other size":
        put(mask, binary(h=21))
    elif kind == "greys":
        put(mask, picture()[..., 0])
    elif kind == "colours":
        put(mask, picture())
    elif kind == "float":
        Image.fromarray(picture()[..., 0].astype(np.float32)).save(image.with_suffix(".tif"))
        image.unlink()
    elif kind == "pages":
        frames = [Image.fromarray(picture(i)) for i in range(2)]
        frames[0].save(image.with_suffix(".tiff"), save_all=True, append_images=frames[1:])
        image.unlink()
    elif kind == "bomb":
        image.write_bytes(png_header(30000, 30000))
    elif kind == "smaller bomb":  # just above the limit
        image.write_bytes(png_header(MAX_PIXELS // 10000 + 1, 10000))
    elif kind == "script":
        image.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("corrupt", r"images/b\.png: not a readable PNG"),
        ("truncated", r"images/b\.png: corrupt or truncated image"),
        ("truncated mask", r"masks/b\.png: corrupt or truncated mask"),
        ("empty file", r"images/b\.png: not a readable"),
        ("other size", r"masks/b\.png: the mask is 30x21 \(width x height\), its image 30x20"),
        ("greys", r"masks/b\.png: non-binary mask, it holds \d+ values \(.*threshold=128.*classes=N"),
        ("colours", r"masks/b\.png: the mask has colours"),
        ("float", r"images/b\.tif: 1 channels of kind F"),
        ("pages", r"images/b\.tiff: holds more than one page"),
        ("bomb", r"images/b\.png: more than 178956970 pixels"),
        ("smaller bomb", r"images/b\.png: more than 178956970 pixels"),
        ("script", r"images/b\.png: not a readable"),
    ],
)
def test_a_bad_file_is_named_before_training_starts(tmp_path, kind, says):
    folder(tmp_path / "train")
    open_data(str(tmp_path), "train").check()
    spoil(tmp_path, kind)
    with pytest.raises(BadInput, match=says) as error:
        open_data(str(tmp_path), "train").check()
    assert "\n" not in str(error.value)


def test_a_bomb_is_refused_where_a_program_lifted_pils_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "x.png").write_bytes(png_header(MAX_PIXELS // 10000 + 1, 10000))
    for reader in (read_image, read_mask, read_header):
        with pytest.raises(BadInput, match=r"x\.png: 17896x10000, more than 178956970 pixels"):
            reader(tmp_path / "x.png", "x.png")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_damaged_bytes_raise_badinput_or_give_an_image(form):
    rng = np.random.default_rng(0)
    whole = np.frombuffer(encoded(picture(), format=form), np.uint8)
    refused = 0
    for _ in range(150):
        damaged = whole.copy()[: rng.integers(1, len(whole) + 1) if rng.random() < 0.3 else None]
        damaged[rng.integers(0, len(damaged), rng.integers(1, 6))] = rng.integers(0, 256)
        for reader in (read_image, read_mask, read_header):
            try:
                reader(damaged.tobytes(), "file.x")
            except BadInput as error:
                refused += 1
                assert str(error).startswith("file.x: ")  # noqa: PT017 - damage need not be noticed
                assert "\n" not in str(error)  # noqa: PT017
    assert refused > 40


def test_missing_partners_and_folders(tmp_path):
    root = folder(tmp_path / "d", "abcdef")
    for name in "abcd":
        (root / "masks" / f"{name}.png").unlink()
    with pytest.raises(BadInput, match=r"no mask for 4 of 6 images: a\.png, b\.png, c\.png and 1 more"):
        open_data(str(root), "train")
    for name in "abcde":
        (root / "images" / f"{name}.png").unlink()
    with pytest.raises(BadInput, match=r"no image for 1 masks: e\.png"):
        open_data(str(root), "train")
    (root / "images" / "f.png").unlink()
    with pytest.raises(BadInput, match="no images"):
        open_data(str(root), "train")
    with pytest.raises(BadInput, match=r"no such folder; give a folder"):
        open_data(str(tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no folder images/ and no folder masks/"):
        open_data(str(tmp_path / "empty"), "train")
    twice = folder(tmp_path / "twice")
    put(twice / "images" / "a.jpg", picture())
    with pytest.raises(BadInput, match="has the same stem"):
        open_data(str(twice), "train")


def test_bad_parquet(tmp_path):
    good, mask = encoded(picture()), encoded(binary())
    parquet(tmp_path / "a" / "train-0.parquet", {"picture": [good], "mask": [mask]})
    with pytest.raises(BadInput, match="no column image; it has picture, mask"):
        open_data(str(tmp_path / "a"), "train")
    parquet(tmp_path / "b" / "train-0.parquet", {"image": [good, None], "mask": [mask, mask]})
    with pytest.raises(BadInput, match="row 1: column image holds nothing"):
        open_data(str(tmp_path / "b"), "train").check()
    parquet(tmp_path / "c" / "train-0.parquet", {"image": [good, good[:100]], "mask": [mask, mask], "name": ["x", "y"]})
    with pytest.raises(BadInput, match=r"train-0\.parquet, row 'y', image: "):
        open_data(str(tmp_path / "c"), "train").check()
    whole = (tmp_path / "c" / "train-0.parquet").read_bytes()
    for name, content in {"d": whole[: len(whole) // 2], "e": b"PAR1" + b"\0" * 100, "f": b""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train-0.parquet").write_bytes(content)
        with pytest.raises(BadInput, match=r"train-0\.parquet: cannot be read as Parquet"):
            open_data(str(tmp_path / name), "train")
    parquet(tmp_path / "g" / "train-0.parquet", {"image": [3], "mask": ["x"]})
    with pytest.raises(BadInput, match="column image holds int64; it needs the bytes"):
        open_data(str(tmp_path / "g"), "train")


@pytest.mark.parametrize(
    ("ref", "split", "kind", "says"),
    [
        ("synthetic:wafer", "tarin", UnknownName, "did you mean 'train'|one of train, val, test"),
        ("synthetic:moon", "train", UnknownName, "known: synthetic:wafer"),
        ("synthetic:wafer?sise=64", "train", UnknownName, "unknown option 'sise'"),
        ("synthetic:wafer?size=1", "train", BadInput, "size=1: a whole number from 16"),
        ("synthetic:wafer?size=big", "train", BadInput, "size=big"),
        ("synthetic:wafer?size", "train", BadInput, "key=value"),
        (".?clases=3", "train", UnknownName, "unknown option 'clases'"),
        (".?classes=1", "train", BadInput, "2 to 255"),
        (".?classes=a,a", "train", BadInput, "different names"),
        (".?classes=3&threshold=9", "train", BadInput, "for two classes"),
    ],
)
def test_bad_references(ref, split, kind, says):
    with pytest.raises(kind, match=says):
        open_data(ref, split)


# Memory and processes


def test_the_cache_stops_at_its_limit(tmp_path, monkeypatch):
    folder(tmp_path / "train")
    monkeypatch.setattr(room, "CACHE_BYTES", 2 * 20 * 30 * 4)
    samples = open_data(str(tmp_path), "train")
    samples.check()
    assert samples[0].image is samples[0].image
    assert samples[2].image is not samples[2].image
    assert torch.equal(samples[2].image, samples[2].image)


def test_samples_travel_to_other_processes(tmp_path):
    folder(tmp_path / "train")
    samples = open_data(str(tmp_path), "train")
    samples.check()
    copy = pickle.loads(pickle.dumps(samples))
    assert len(pickle.dumps(samples)) < 2000  # the decoded images stay behind
    assert torch.equal(copy[1].image, samples[1].image)
    batches = list(torch.utils.data.DataLoader(samples, batch_size=3, num_workers=1))
    assert torch.equal(batches[0].image[2], samples[2].image)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_mirror_is_numpys_reflection(size):
    wide = np.pad(np.arange(size), 13, mode="reflect") if size > 1 else np.zeros(27, int)
    np.testing.assert_array_equal(mirror(-13, size + 13, size), wide)


def test_side_reduces_images_and_masks_alike(tiny_data):
    whole, small = open_data(str(tiny_data), "train"), open_data(f"{tiny_data}?side=20", "train")
    for index in range(3):
        image, mask, name = small[index]
        h, w = whole[index].mask.shape
        assert name == whole[index].name
        assert tuple(mask.shape) == tuple(image.shape[1:]) == small.source.sizes(index) == (round(h * 20 / w), 20)
        assert set(mask.unique().tolist()) <= {0, 1}
        # The share of the defect stays, and so does its place: where the reduced image is bright.
        assert mask.float().mean().item() == pytest.approx(whole[index].mask.float().mean().item(), rel=0.3)
        assert image[:, mask > 0].float().mean() > image[:, mask == 0].float().mean() + 60
    unchanged = open_data(f"{tiny_data}?side=500", "train")
    assert torch.equal(unchanged[0].image, whole[0].image)
    for side in ("3", "x"):
        with pytest.raises(BadInput, match=f"side={side}: a whole number from 16"):
            open_data(f"{tiny_data}?side={side}", "train")


@pytest.mark.parametrize("key", ["side", "threshold", "ignore", "bits"])
@pytest.mark.parametrize("value", ["9" * 5000, "9" * 19, "-1", "1.5", "nan", "\u00b2", "\u0661"])
def test_numbers_that_are_none_are_one_short_line(tiny_data, key, value):
    with pytest.raises(BadInput, match=f"{key}=.*: a whole number from") as found:
        open_data(f"{tiny_data}?{key}={value}", "train")
    assert len(str(found.value)) < 500
