"""Limits stand on what is used up: bytes in memory, not on disk; pixels as networks see them, not as stored."""

import io
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, TiffImagePlugin
from torch import nn

from leanconv.errors import BadInput
from leanconv.runs import RunFolder, load
from leanconv.train.data import parquet
from leanconv.train.data.decode import MAX_SIDE, decode, read_header
from leanconv.train.data.labelled import judge_shape, prepared
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.samples import Sample, open_data
from leanconv.train.inference import tiles
from leanconv.train.inference.predict import predict
from leanconv.train.tasks import images as images_room
from leanconv.train.tasks.evaluate import evaluate


def png(width=24, height=20, value=0, mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, (width, height), value if mode == "L" else (value,) * 3).save(file, "PNG")
    return file.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


# Parquet


def test_equal_values_of_a_parquet_column_are_held_once(tmp_path):
    """A dictionary of one image for 9,000 rows: 9 kB that were 5.7 GB as objects of their own, of larger images."""
    cell = {"bytes": png(), "path": "same.png"}
    mask = png(mode="L")
    file = write(tmp_path / "pairs/train-0.parquet", {"image": [cell] * 9000, "mask": [mask] * 9000})
    assert file.stat().st_size < 9000
    rows = open_data(str(tmp_path / "pairs"), "train").source._rows
    assert len(rows) == 9000
    assert len({id(image["bytes"]) for *_, image, _ in rows}) == len({id(mask) for *_, mask in rows}) == 1
    write(tmp_path / "classes/train-0.parquet", {"image": [png()] * 9000, "label": ["a", "b"] * 4500})
    source = open_labelled(f"{tmp_path / 'classes'}?val=0", "train", size=16).source
    assert len({id(row) for row in source.source.rows}) == 1


@pytest.mark.parametrize("codec", ["gzip", "zstd", "brotli"])
def test_a_parquet_that_unfolds_to_far_more_than_it_is_is_refused(tmp_path, monkeypatch, codec):
    monkeypatch.setattr(parquet, "_SMALL", 2**20)
    images = [bytes(1_000_000) + bytes([index]) for index in range(2)]
    columns = {"image": images, "mask": images[::-1], "label": [0, 1]}
    write(tmp_path / "train-0.parquet", columns, compression=codec, use_dictionary=False)
    for open_split in (
        lambda: open_data(str(tmp_path), "train"),
        lambda: open_labelled(str(tmp_path), "train", size=8),
    ):
        with pytest.raises(BadInput, match=r"train-0\.parquet: .* bytes that unfold to .* MiB, which no enc") as error:
            open_split()
        assert "\n" not in str(error.value)


def test_values_that_repeat_the_one_before_count_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_SMALL", 2**20)
    images = [b"x" * 10_000] * 500  # 5 MB of prefixes in a few kB
    file = write(
        tmp_path / "train-0.parquet",
        {"image": images, "mask": images},
        use_dictionary=False,
        column_encoding={"image": "DELTA_BYTE_ARRAY", "mask": "DELTA_BYTE_ARRAY"},
    )
    assert file.stat().st_size < 10_000
    with pytest.raises(BadInput, match=r"unfold to .* MiB"):
        open_data(str(tmp_path), "train")


@pytest.mark.parametrize("group", [None, 90_000])
@pytest.mark.parametrize("columns", [("image", "mask"), ("image", "label")])
def test_a_parquet_of_more_rows_than_bytes_is_refused(tmp_path, columns, group):
    kinds = {"image": pa.binary(), "mask": pa.binary(), "label": pa.int64()}
    write(
        tmp_path / "train-0.parquet", {name: pa.nulls(1_200_000, kinds[name]) for name in columns}, row_group_size=group
    )
    with pytest.raises(BadInput, match=r"train-0\.parquet: [\d,]+ values in [\d,]+ bytes"):
        open_data(str(tmp_path), "train") if "mask" in columns else open_labelled(str(tmp_path), "train", size=8)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([png()])] * 3, ["image", "image", "mask"])
    pq.write_table(table, tmp_path / "train-0.parquet")
    with pytest.raises(BadInput, match=r"train-0\.parquet: has several columns image; keep one"):
        open_data(str(tmp_path), "train")


def test_columns_of_lists_are_refused_before_they_are_read(tmp_path):
    write(tmp_path / "train-0.parquet", {"image": [list(png())], "mask": [png(mode="L")]})
    with pytest.raises(BadInput, match=r"column image holds list<.*; it needs the bytes of an encoded image"):
        open_data(str(tmp_path), "train")


def test_a_split_that_memory_would_not_hold_is_refused_by_its_footers(tmp_path, monkeypatch):
    for index in range(2):
        noise = [np.random.default_rng(index).bytes(2000)] * 3
        write(tmp_path / f"train-{index}.parquet", {"image": noise, "mask": noise}, use_dictionary=False)
    monkeypatch.setattr(parquet, "MAX_BYTES", 20_000)
    with pytest.raises(BadInput, match=r"a split of .* does not fit in memory; unpack it to folders"):
        open_data(str(tmp_path), "train")


def test_row_groups_and_missing_cells_read_the_same(tmp_path):
    images = [png(value=index) for index in range(7)]
    cells = [{"bytes": image, "path": f"p{index}.png"} for index, image in enumerate(images)]
    write(tmp_path / "train-0.parquet", {"image": cells, "mask": [png(mode="L")] * 7}, row_group_size=3)
    samples = open_data(str(tmp_path), "train")
    assert [sample.name for sample in samples] == [f"p{index}" for index in range(7)]
    assert [int(sample.image[0, 0, 0]) for sample in samples] == list(range(7))
    write(tmp_path / "train-0.parquet", {"image": [*cells, None], "mask": [png(mode="L")] * 8}, row_group_size=3)
    with pytest.raises(BadInput, match="row 7: column image holds nothing"):
        open_data(str(tmp_path), "train").check()


# Pixels as they are seen


@pytest.fixture
def classifier(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_model("leanconv:resnet18?num_classes=2&width=4", task="classify", classes=("a", "b"))
    folder.save_model(load("leanconv:resnet18?num_classes=2&width=4"))
    folder.recipe.write_text("size = 224\nsteps = 1\n")
    return folder


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (width, height) in {"a": (24, 20), "b_strip": (60_000, 1), "c_strip": (1, 60_000), "d": (30, 40)}.items():
        (folder / f"{name}.png").write_bytes(png(width, height))
    return folder


def test_a_strip_costs_no_other_picture_its_class(classifier, pictures, tmp_path):
    found = predict(classifier.path, [pictures], tmp_path / "out")
    assert [guess.image for guess in found.done] == [str(pictures / "a.png"), str(pictures / "d.png")]
    assert [path for path, _ in found.failed] == [str(pictures / "b_strip.png"), str(pictures / "c_strip.png")]
    assert "b_strip.png: 60000x1 pixels would be 13440000x224" in found.failed[0][1]


def test_a_strip_is_found_before_a_classifier_is_trained(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                (tmp_path / split / name / f"{index}.png").write_bytes(png())
    (tmp_path / "train/b/1.png").write_bytes(png(60_000, 1))
    with pytest.raises(BadInput, match=r"train/b/1\.png: 60000x1 pixels would be .* cut it into parts"):
        open_labelled(str(tmp_path), "train", size=224).check(progress=False)


@pytest.mark.parametrize("shape", [(20, 24), (1, 300), (900, 3), (224, 224), (300, 5000)])
def test_the_judged_size_is_the_one_that_is_made(shape):
    judge_shape(*shape, 224, "x")
    assert tuple(prepared(torch.zeros(3, *shape, dtype=torch.uint8), 224).shape) == (3, 224, 224)


class Grey(nn.Module):
    """K logits a pixel; it has no memory for pictures of other sizes than the first one."""

    def __init__(self, outputs=1, error=None):
        super().__init__()
        self.outputs, self.error = outputs, error

    def forward(self, x):
        if self.error is not None and x.shape[-1] > 32:
            raise self.error
        return x.mean(1, keepdim=True).expand(-1, self.outputs, -1, -1)


@pytest.mark.parametrize("side", [None, 16])
def test_logits_that_memory_does_not_hold_cost_one_picture(pictures, tmp_path, monkeypatch, side):
    monkeypatch.setattr(tiles, "MOST_LOGITS", 5 * 40_000)
    found = predict(Grey(5), [pictures], tmp_path / "out", side=side)
    assert [path.split("/")[-1] for path, _ in found.failed] == ["b_strip.png", "c_strip.png"]
    assert "b_strip.png: 5 outputs for 60000x1 pixels are" in found.failed[0][1]
    assert len(found.done) == 2


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    ],
)
def test_memory_that_ends_at_one_picture_costs_one_picture(pictures, tmp_path, error):
    for strip in pictures.glob("*strip*"):
        strip.unlink()
    (pictures / "b.png").unlink(missing_ok=True)
    (pictures / "b\x1b[2J.png").write_bytes(png(64, 40))
    found = predict(Grey(error=error), [pictures], tmp_path / "out")
    assert [path for path, _ in found.failed] == [str(pictures / "b\x1b[2J.png")]
    assert r"b\x1b[2J.png: there is not enough memory for it" in found.failed[0][1]
    assert len(found.done) == 2
    with pytest.raises(RuntimeError, match="of its own"):
        predict(Grey(error=RuntimeError("a fault of its own")), [pictures], tmp_path / "out")


def test_images_that_wait_for_their_size_are_bounded(monkeypatch):
    """Photographs of as many sizes as there are photographs: none waits until the end."""
    samples = [
        Sample(torch.zeros(3, 32, 32 + index, dtype=torch.uint8), torch.zeros(32, 32 + index, dtype=torch.uint8), "x")
        for index in range(12)
    ]
    alive = []

    class Set(list):
        classes = ("a", "b")

        def __getitem__(self, index):
            alive.append(index)
            return super().__getitem__(index)

    net = Grey()
    net.weight = nn.Parameter(torch.zeros(1))
    monkeypatch.setattr(images_room, "HELD_PIXELS", 4 * 32 * 44)
    done = []
    scores = evaluate(net, Set(samples), on_images=done.append)
    assert len(scores.names) == 12
    assert done[0] <= 6


# What a header costs


def test_a_side_beyond_all_padding_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", MAX_SIDE + 1, 1, 8, 0, 0, 0, 0)
    stored = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    with pytest.raises(BadInput, match=f"x: {MAX_SIDE + 1}x1, a side of more than {MAX_SIDE} pixels"):
        read_header(stored, "x")


def test_a_bomb_of_text_beside_the_pixels_is_one_line():
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 4_000_000, 9))
    stored = png()
    stored = stored[:33] + text + stored[33:]
    with pytest.raises(BadInput, match="x: ") as error:
        decode(stored, "x")
    assert "\n" not in str(error.value)


def test_pages_are_not_counted(monkeypatch):
    """A TIFF may chain a million of them: the second one is enough to know."""
    file = io.BytesIO()
    pages = [Image.new("L", (4, 4), index) for index in range(4)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])

    def walk(image):
        raise AssertionError("all pages were walked")

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", property(walk))
    with pytest.raises(BadInput, match="more than one page"):
        decode(file.getvalue(), "x")
