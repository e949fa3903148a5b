"""The parts of `infer.py` against what they stand for: tiles, resizing and reading of `leanconv predict`."""

import ast

import numpy as np
import pytest
import torch

from leanconv.deploy.script import RUNTIMES, script

Image = pytest.importorskip("PIL.Image", reason="needs the train extra: pillow")

from leanconv.deploy.script.classes import square  # noqa: E402
from leanconv.deploy.script.masks import class_map  # noqa: E402
from leanconv.deploy.script.pictures import pictures, read  # noqa: E402
from leanconv.deploy.script.reduced import enlarged  # noqa: E402
from leanconv.deploy.script.resize import resized  # noqa: E402
from leanconv.deploy.script.tiles import axis, tiled  # noqa: E402
from leanconv.errors import BadInput  # noqa: E402
from leanconv.train.data.image_reader import ImageReader  # noqa: E402
from leanconv.train.data.labelled import prepared  # noqa: E402
from leanconv.train.data.reduce import enlarge_logits, reduce_image  # noqa: E402
from leanconv.train.inference.tiles import _Axis, predict_logits  # noqa: E402


@pytest.mark.parametrize("suffix", list(RUNTIMES))
@pytest.mark.parametrize(("task", "resizes"), [("segment", False), ("segment", True), ("classify", True)])
def test_every_script_is_whole(suffix, task, resizes, tmp_path):
    """It imports one runtime beside numpy and PIL, and every name that it calls is there."""
    text = script(tmp_path / f'a "b" ü{suffix}', task=task, resizes=resizes)
    tree = ast.parse(text)
    modules = {(getattr(node, "module", "") or node.names[0].name).split(".")[0] for node in tree.body[1:9]
               if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    assert modules >= {"numpy", "PIL", RUNTIMES[suffix]}
    assert not modules & ({"leanconv", *RUNTIMES.values()} - {RUNTIMES[suffix]})
    assert f'a "b" ü{suffix}' in {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    parts = {"open_model", "pictures", "read", "axis", "tiled", "reduced", "enlarged", "resized", "square", "class_map"}
    assert called & parts == defined & parts
    assert ("reduced" in called) == (task == "segment" and resizes)
    assert "written by leanconv" in text


@pytest.mark.parametrize(("tile", "overlap"), [(512, 64), (96, 32), (64, 0), (100, 7)])
@pytest.mark.parametrize("unit", [1, 16, 32])
@pytest.mark.parametrize("size", [1, 5, 96, 97, 511, 513, 700, 2048])
def test_tiles_are_those_of_predict(size, unit, tile, overlap):
    want, found = _Axis.of(size, tile, overlap, unit), axis(size, unit, tile, overlap)
    assert [start for start, _, _ in found] == want.starts
    for (_, pixels, weight), their_pixels, their_weight in zip(found, want.pixels, want.weights, strict=True):
        assert pixels.tolist() == their_pixels.tolist()
        assert weight.dtype == np.float32
        assert weight.tolist() == their_weight.tolist()


def test_blended_logits_are_those_of_predict():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 2, 3, padding=1)
    layer.size_multiple = 4
    picture = torch.randint(0, 256, (3, 75, 131), dtype=torch.uint8)

    def run(frames, output):
        assert output == "logits"
        return layer((torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25).detach().numpy()

    want = predict_logits(layer, picture, tile=32, overlap=8).numpy()
    found = tiled(picture.permute(1, 2, 0).numpy(), {"multiple": 4, "tile": 32, "overlap": 8}, run)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


def test_resizing_is_pytorchs_to_the_bit():
    pytest.importorskip("torchvision", reason="needs the train extra: torchvision")
    random = np.random.default_rng(0)
    for _ in range(30):
        h, w, side, size = (int(each) for each in random.integers(1, 150, 4))
        picture = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        image = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        want = reduce_image(image, side)
        assert np.array_equal(resized(picture, *want.shape[1:]), want.permute(1, 2, 0).numpy()), (h, w, side)
        assert np.array_equal(square(picture, size), prepared(image, size).permute(1, 2, 0).numpy()), (h, w, size)


@pytest.mark.parametrize(("h", "w", "height", "width"), [(5, 7, 12, 9), (1, 1, 6, 6), (30, 20, 91, 61), (4, 4, 4, 9)])
def test_enlarged_logits_are_predicts(h, w, height, width):
    logits = torch.randn(2, h, w)
    found = enlarged(enlarged(logits.numpy(), 2, width), 1, height)
    np.testing.assert_allclose(found, enlarge_logits(logits, height, width), rtol=0, atol=2e-6)


@pytest.mark.parametrize("threshold", [None, 0.4, (0.2, 0.5), (0.9, 0.1)])
def test_classes_by_thresholds(threshold):
    """Of several classes the likeliest but the background, from its own threshold on, as a loop over pixels."""
    logits = torch.randn(3, 20, 30)
    found = class_map(logits.numpy(), threshold)
    for y, x in np.ndindex(20, 30):
        p = logits[:, y, x].softmax(0).tolist()
        best = 1 if p[1] >= p[2] else 2
        least = threshold[best - 1] if isinstance(threshold, tuple) else threshold
        want = p.index(max(p)) if threshold is None else best if p[best] >= least else 0
        assert found[y, x] == want
    one = logits[:1] * 60  # exp overflows without a warning
    assert np.array_equal(class_map(one.numpy(), 0.4), (one[0].sigmoid() >= 0.4).numpy())


def saved(folder):
    """Pictures of every kind that cameras and programs write."""
    random = np.random.default_rng(0)
    grey, colour = random.integers(0, 256, (9, 6), dtype=np.uint8), random.integers(0, 256, (9, 6, 3), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(colour).save(folder / "colour.jpg", quality=90)
    Image.fromarray(np.dstack([colour, grey])).save(folder / "alpha.png")
    Image.fromarray(np.dstack([grey, grey[::-1]])).save(folder / "grey_alpha.png")
    Image.fromarray(colour).quantize(7).save(folder / "palette.png", transparency=3)
    Image.fromarray(grey > 127).save(folder / "bits.png")
    Image.fromarray(colour).convert("CMYK").save(folder / "ink.tiff")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(colour).save(folder / "turned.jpg", exif=exif)
    Image.fromarray(random.integers(0, 4096, (9, 6), dtype=np.uint16)).save(folder / "twelve.png")
    Image.fromarray(random.integers(0, 5000, (9, 6), dtype=np.uint16)).save(folder / "brighter.tiff")
    Image.fromarray(colour[:1, :1]).save(folder / "pixel.bmp")


def test_pictures_are_read_as_by_predict(tmp_path):
    saved(tmp_path)
    paths = list(pictures([tmp_path]))
    assert len(paths) == 11
    for path in paths:
        want = ImageReader(12).read(path, str(path)).permute(1, 2, 0).numpy()
        assert np.array_equal(read(path, 12), want), path.name


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_are_read_as_by_predict(channels, bits, tmp_path):
    """PIL keeps the high byte of each value only; they were refused."""
    deep = np.random.default_rng(0).integers(0, 2**bits + 9 * (bits < 16), (4, 5, channels), dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "deep.png").write_bytes(png(5, 4, raw, {2: 4, 3: 2, 4: 6}[channels]))
    want = ImageReader(bits).read(tmp_path / "deep.png", "deep").permute(1, 2, 0).numpy()
    assert np.array_equal(read(tmp_path / "deep.png", bits), want)
    top = 2**bits - 1
    colours = deep[..., :3] if channels > 2 else np.repeat(deep[..., :1], 3, 2)
    assert np.array_equal(want, np.minimum(colours.astype(int), top) * 255 // top)


def test_a_pillow_without_some_formats_reads_the_others(tmp_path, monkeypatch):
    """`Image.open` fails for a format of its list that it does not know: AVIF came with Pillow 11.3."""
    saved(tmp_path)
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF")
    for name in ("pixel.bmp", "ink.tiff", "grey.png"):
        assert read(tmp_path / name, None).shape[2] == 3


def test_what_cannot_be_read_alike_is_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="16 bits"):  # the run does not know how many of them are used
        read(tmp_path / "twelve.png", None)
    deep = np.random.default_rng(0).integers(0, 2**16, (4, 5, 3), dtype=np.uint16)
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "deep.png").write_bytes(png(5, 4, raw))
    with pytest.raises(ValueError, match="16 bits"):
        read(tmp_path / "deep.png", None)
    Image.fromarray(np.zeros((3, 3), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="kind F"):
        read(tmp_path / "float.tiff", None)
    pages = [Image.new("L", (3, 3), i) for i in range(2)]
    pages[0].save(tmp_path / "pages.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="one page"):
        read(tmp_path / "pages.tiff", None)
    for name in ("float.tiff", "pages.tiff"):
        with pytest.raises(BadInput):  # predict refuses the same
            ImageReader().read(tmp_path / name, name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="no pictures"):
        list(pictures([tmp_path / "empty"]))


def png(width, height, raw, kind=2):
    """A PNG of 16-bit colours, which PIL does not write."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
