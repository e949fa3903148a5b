"""Photographs that are no RGB of 8 bits: converted alike in training, evaluation and prediction, and it is said."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.image_reader import read_image
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.samples import open_data
from leanconv.train.inference.predict import predict
from leanconv.train.inference.score import score_run
from leanconv.train.loop import fit
from leanconv.train.recipe import Recipe

CAMERA = 4095  # the largest value of 12 bits


def save(array, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def encoded(array, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


def deep_png(values):
    """A PNG of 16 bits a channel, uint16 `H W C`, which Pillow cannot write in colour."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width, bands = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(values, order="<", compression=None):
    """An uncompressed TIFF of 16-bit RGB in either byte order; with `compression` as LibTIFF packs it."""
    height, width, bands = values.shape
    body = values.astype(f"{order}u2").tobytes()
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 14),
               (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(body))]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 14 + len(body))
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1  # longer ones are where the value says
        packed = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return head + struct.pack(f"{order}3H", 16, 16, 16) + body + directory + b"\0\0\0\0"


def scaled(values, bits=12):
    return (values.astype(np.uint32) * 255 // (2**bits - 1)).astype(np.uint8)


def exposure(seed, top=CAMERA, shape=(24, 32)):
    return np.random.default_rng(seed).integers(0, top + 1, shape).astype(np.uint16)


@pytest.fixture
def camera(tmp_path):
    """A data set of 12-bit grey PNGs, of which the training images are dark."""
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        for index in range(count):
            values = exposure(index, top=CAMERA if split == "test" else 900)
            mask = np.zeros(values.shape, np.uint8)
            mask[4:12, 6:20] = 255
            values[mask > 0] //= 2
            save(values, tmp_path / "camera" / split / "images" / f"{index}.png")
            save(mask, tmp_path / "camera" / split / "masks" / f"{index}.png")
    save(np.full((24, 32), CAMERA, np.uint16), tmp_path / "camera/test/images/1.png")
    return tmp_path / "camera"


def test_1500_and_1535_of_a_12_bit_camera_stay_apart():
    pixels = read_image(encoded(np.array([[0, 1500, 1535, CAMERA]], np.uint16)), "x")
    assert pixels[0].tolist() == [[0, 93, 95, 255]]
    assert torch.equal(pixels[0], pixels[2])


def test_every_image_of_a_data_set_has_one_range(camera):
    for split in ("train", "val", "test"):
        samples = open_data(str(camera), split)
        samples.check()
        assert samples.bits == 12
        for index, sample in enumerate(samples):
            values = np.asarray(Image.open(camera / split / "images" / f"{index}.png"))
            np.testing.assert_array_equal(sample.image[0], scaled(values))
        assert "16 bits a channel, scaled by the 12 that are used" in samples.remarks()[0]
    assert open_data(f"{camera}?bits=16", "test")[1].image.max() == CAMERA // 257
    clipped = open_data(f"{camera}?bits=10", "test")
    assert clipped[1].image.min() == 255
    assert "brighter than the 1023 of 10 bits, cut off: 1 image, " in clipped.remarks()[1]
    with pytest.raises(BadInput, match="bits=20: a whole number from 8 to 16"):
        open_data(f"{camera}?bits=20", "train")


def test_without_a_check_the_range_is_the_same(camera):
    """Whoever reads one image first, of any split."""
    sample = open_data(str(camera), "train")[2]
    values = np.asarray(Image.open(camera / "train/images/2.png"))
    np.testing.assert_array_equal(sample.image[0], scaled(values))


def test_folders_of_classes_and_parquet_have_one_range_too(tmp_path):
    for split, top in {"train": 900, "val": CAMERA}.items():
        for name in ("a", "b"):
            for index in range(3):
                save(exposure(index, top), tmp_path / "classes" / split / name / f"{index}.png")
        rows = [encoded(exposure(index, top)) for index in range(4)]
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": rows, "label": [0, 1, 0, 1]}), tmp_path / "rows" / f"{split}-0.parquet")
        masks = [encoded(np.zeros((24, 32), np.uint8))] * 4
        (tmp_path / "masks").mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": rows, "mask": masks}), tmp_path / "masks" / f"{split}-0.parquet")
    for samples in (
        open_labelled(str(tmp_path / "classes"), "train", size=24),
        open_labelled(str(tmp_path / "rows"), "train", size=24),
        open_data(str(tmp_path / "masks"), "train"),
    ):
        assert samples[0].image.max() == scaled(exposure(0, 900)).max()
        assert samples.bits == 12
    assert open_labelled(f"{tmp_path / 'rows'}?bits=16", "val", size=24)[0].image.max() < 16


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colour_of_sixteen_bits_keeps_both_bytes(bands):
    values = exposure(0, shape=(5, 7, bands))
    values[..., -1] = 65535 if bands != 3 else values[..., -1]  # opaque
    expected = scaled(values[..., :3] if bands > 2 else np.repeat(values[..., :1], 3, 2))
    np.testing.assert_array_equal(read_image(deep_png(values), "x", 12).permute(1, 2, 0), expected)
    np.testing.assert_array_equal(read_image(deep_png(values), "x").permute(1, 2, 0), expected)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiffs_of_sixteen_bits_in_either_byte_order(order):
    values = exposure(1, shape=(5, 7, 3))
    np.testing.assert_array_equal(read_image(deep_tiff(values, order), "x").permute(1, 2, 0), scaled(values))
    grey = exposure(2)
    for compression in (None, "tiff_lzw", "tiff_deflate"):
        stored = encoded(grey, "TIFF", compression=compression)
        np.testing.assert_array_equal(read_image(stored, "x")[1], scaled(grey))


def test_the_orientation_tag_turns_deep_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = exposure(3)
    for form in ("PNG", "TIFF"):
        stored = encoded(grey, form, exif=exif)
        np.testing.assert_array_equal(read_image(stored, "x")[0], np.rot90(scaled(grey), -1))


@pytest.mark.parametrize("transparency", [0, b"\x80\x00\xff"])
def test_transparency_leaves_a_photographs_colours(transparency):
    shown = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 15) % 3)
    shown.putpalette([9, 8, 7, 200, 100, 50, 0, 255, 3])
    file = io.BytesIO()
    shown.save(file, "PNG", transparency=transparency)
    np.testing.assert_array_equal(read_image(file.getvalue(), "x").permute(1, 2, 0), np.asarray(shown.convert("RGB")))


def test_white_as_zero_is_refused_in_sixteen_bits():
    stored = encoded(exposure(4), "TIFF", tiffinfo={262: 0})
    with pytest.raises(BadInput, match="16 bits of which 0 is white"):
        read_image(stored, "x")


def test_four_inks_become_three_colours_and_it_is_said(tmp_path):
    rgb = np.full((24, 32, 3), (200, 60, 20), np.uint8)
    for index in range(3):
        name = tmp_path / "train/images" / f"{index}.jpg"
        save(rgb, name, quality=95)
        save(np.zeros((24, 32), np.uint8), tmp_path / "train/masks" / f"{index}.png")
    inks = Image.fromarray(rgb).convert("CMYK")
    inks.save(tmp_path / "train/images/2.jpg", quality=95)
    samples = open_data(str(tmp_path), "train")
    samples.check()
    assert samples.remarks() == [f"CMYK converted to RGB: 1 image, {tmp_path}/train/images/2.jpg"]
    assert (samples[2].image.float() - samples[1].image.float()).abs().max() < 4


class Bright(nn.Module):
    """One logit a pixel: how bright it is."""

    def forward(self, x):
        return 8 * (x.mean(1, keepdim=True) - 1)


def recipe(data, out):
    return Recipe(
        model="leanconv:unet?base=2&levels=2",
        data=str(data),
        out=str(out),
        size=16,
        batch=2,
        steps=1,
        device="cpu",
        threads=1,
    )


def test_a_run_reads_in_the_range_of_its_training(camera, tmp_path, capsys):
    folder = fit(recipe(camera, tmp_path / "run"))
    assert folder.read_model().bits == 12
    told = " ".join(capsys.readouterr().err.split())
    assert "train: 16 bits a channel, scaled by the 12 that are used: 4 images" in told
    # Other data, all of it dark, would have another range of its own.
    dark = tmp_path / "dark"
    for index in range(3):
        save(exposure(index, top=900), dark / "test/images" / f"{index}.png")
        save(np.zeros((24, 32), np.uint8), dark / "test/masks" / f"{index}.png")
    said = []
    score_run(folder.path, data=str(dark), say=said.append)
    assert "scaled by the 12 that are used: 3 images" in said[0]
    found = predict(folder.path, [dark / "test/images"], tmp_path / "found", threshold=0.999)
    assert "scaled by the 12 that are used: 3 images" in found.notes[0]
    overlay = read_image((tmp_path / "found/0_overlay.png"), "overlay")
    plain = np.asarray(Image.open(tmp_path / "found/0_mask.png")) == 0
    assert plain.any()
    shown = scaled(np.asarray(Image.open(dark / "test/images/0.png")))
    np.testing.assert_array_equal(overlay[0].numpy()[plain], shown[plain])
    again = fit(recipe(camera, tmp_path / "run"), resume=True, progress=False)
    assert again.read_model().bits == 12


def test_predict_reads_as_the_words_say(tmp_path):
    path = save(np.full((24, 32), 3000, np.uint16), tmp_path / "in/a.png")
    for bits, value in {None: 3000 * 255 // 4095, 12: 3000 * 255 // 4095, 16: 3000 // 257}.items():
        found = predict(Bright(), [path], tmp_path / "out", threshold=0.999, bits=bits)
        assert not found.failed
        assert f"scaled by the {bits or 12} that are used: 1 image" in found.notes[0]
        assert read_image(tmp_path / "out/a_overlay.png", "overlay").float().mean().round() == value
    with pytest.raises(BadInput, match="bits=3: from 8 to 16"):
        predict(Bright(), [path], tmp_path / "out", bits=3)


def test_bits_of_a_model_file_are_checked(tmp_path):
    from leanconv.errors import BadCheckpoint
    from leanconv.files import write_json

    folder = RunFolder(tmp_path)
    for bits in (0, 17, "12", True, 1.5):
        write_json(folder.model_json, {"format": 1, "reference": "leanconv:unet", "bits": bits})
        with pytest.raises(BadCheckpoint, match=r"bits '.*': from 8 to 16"):
            folder.read_model()
