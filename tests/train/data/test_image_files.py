"""Which files are images, which mask is whose, what becomes of names: none vanishes, none is taken for another."""

import json
import os
import signal

import numpy as np
import pytest
from PIL import Image, features
from torch import nn

from leanconv.errors import BadInput
from leanconv.train.data.image_files import images_in, left_out, suffixes
from leanconv.train.data.image_reader import read_image
from leanconv.train.data.masks import MaskReader
from leanconv.train.data.open_labelled import open_labelled
from leanconv.train.data.samples import open_data
from leanconv.train.inference.predict import predict

NFC, NFD = "caf\u00e9", "cafe\u0301"
NOT_UTF8 = os.fsdecode(b"caf\xe9")


def put(root, *names):
    """Black pictures of these names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / name, "PNG")
    return root


@pytest.fixture(scope="module")
def colours():
    """A smooth picture, which lossy formats keep nearly as it is."""
    rows, columns = np.mgrid[0:32, 0:48]
    return np.stack([rows * 4, columns * 4, 255 - rows * 4], 2).astype(np.uint8)


# suffix, PIL's format, how far a decoded value may be from the one that was written.
WRITTEN = [
    (".png", "PNG", 0), (".jpg", "JPEG", 12), (".jpeg", "JPEG", 12), (".jpe", "JPEG", 12), (".jfif", "JPEG", 12),
    (".mpo", "MPO", 12), (".webp", "WEBP", 12), (".tif", "TIFF", 0), (".tiff", "TIFF", 0), (".bmp", "BMP", 0),
    (".gif", "GIF", 40), (".ppm", "PPM", 0), (".jp2", "JPEG2000", 4), (".avif", "AVIF", 12),
]  # fmt: skip


@pytest.mark.parametrize("upper", [False, True], ids=["", "UPPER"])
@pytest.mark.parametrize(("suffix", "kind", "off"), WRITTEN, ids=[each[0] for each in WRITTEN])
def test_every_suffix_of_a_format_that_is_read(tmp_path, colours, suffix, kind, off, upper):
    if kind in ("JPEG2000", "AVIF") and not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif"}[kind]):
        pytest.skip(f"this Pillow was built without {kind}")
    path = tmp_path / f"a{suffix.upper() if upper else suffix}"
    Image.fromarray(colours).save(path, kind)
    assert images_in(tmp_path).images == [path]
    read = read_image(path, str(path)).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(read - colours).max() <= off


@pytest.mark.parametrize("suffix", [".heic", ".txt", ".npy", ".eps", ".pdf", ".svg", ".ico", "", ".png~", ".jpg.part"])
def test_other_files_are_left_out_and_counted(tmp_path, suffix):
    put(tmp_path, "a.png")
    (tmp_path / f"b{suffix}").write_bytes(b"x")
    found = images_in(tmp_path)
    assert [path.name for path in found.images] == ["a.png"]
    assert left_out([found]) == f"left out: 1 file ({os.path.splitext(f'b{suffix}')[1] or 'no suffix'} 1)"


def test_of_many_suffixes_the_most_frequent_are_named(tmp_path):
    for place in range(9):
        for copy in range(9 - place):
            (tmp_path / f"{copy}.x{place}").write_bytes(b"")
    said = left_out([images_in(tmp_path)])
    assert said == "left out: 45 files (.x0 9, .x1 8, .x2 7, .x3 6, .x4 5 and 4 more suffixes)"


def test_a_folder_of_other_files_says_what_it_has(tmp_path):
    put(tmp_path, "masks/a.png", "images/folder.png/a.png")
    (tmp_path / "images/a.heic").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"images: no images \(it has \.heic 1; PNG, JPEG"):
        open_data(str(tmp_path), "train")


@pytest.mark.parametrize("kind", ["GIF", "PPM", "PNG"])
def test_masks_of_lossless_formats_are_read(tmp_path, kind):
    mask = np.zeros((8, 12), np.uint8)
    mask[2:5, 3:9] = 255
    path = tmp_path / f"a.{kind.lower()}"
    Image.fromarray(mask).save(path, kind)
    assert np.array_equal(MaskReader(2).read(path, str(path)).numpy(), mask > 0)


@pytest.mark.parametrize(("kind", "feature"), [("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("JPEG", "jpg")])
def test_masks_of_lossy_formats_are_refused(tmp_path, kind, feature):
    if not features.check(feature):
        pytest.skip(f"this Pillow was built without {kind}")
    path = tmp_path / "a.png"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path, kind)
    with pytest.raises(BadInput, match="lossy formats change values"):
        MaskReader(2).read(path, str(path))


def test_16_bits_of_a_pgm(tmp_path):
    deep = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    (tmp_path / "a.pgm").write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    read = read_image(tmp_path / "a.pgm", "a.pgm")[0].numpy()
    assert np.array_equal(read, (deep.astype(int) * 255 // 65535).astype(np.uint8))


SAME = [(NFC, NFD), (NFD, NFC), (NOT_UTF8, NOT_UTF8), ("A.b", "A.b"), ("\u1e9b\u0323", "\u1e9b\u0323")]


@pytest.mark.parametrize(("image", "mask"), SAME)
def test_image_and_mask_belong_together(tmp_path, image, mask):
    put(tmp_path, f"train/images/{image}.png", f"train/masks/{mask}.png", "train/images/b.jpg", "train/masks/b.png")
    samples = open_data(str(tmp_path), "train")
    assert sorted(samples.source.names) == sorted([image, "b"])
    for index in range(2):
        assert samples[index].mask.shape == (8, 8)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            [f"images/{NFC}.png", f"images/{NFD}.png", f"masks/{NFC}.png"],
            r"'cafe\\u0301.png' and 'caf\\xe9.png' are one name",
        ),
        ([f"images/{NFC}.png", f"masks/{NFC}.png", f"masks/{NFD}.png"], r"are one name in two Unicode forms; keep one"),
        (["images/a.png", "images/a.jpg", "masks/a.png"], "has the same stem; keep one of the two"),
        (["images/a.png", "masks/a.png", "masks/a.bmp"], "has the same stem; keep one of the two"),
        (["images/A.png", "masks/a.png"], "A.png and a.png differ in capitals: rename one"),
        (["images/a.png", "images/A.png", "masks/a.png"], "A.png and a.png differ in capitals: rename one"),
        (["images/a.PNG", "masks/a.png", "masks/b.png"], "no image for 1 masks: b.png"),
    ],
)
def test_names_that_clash_are_refused_with_their_names(tmp_path, names, message):
    put(tmp_path, *(f"train/{name}" for name in names))
    with pytest.raises(BadInput, match=message):
        open_data(str(tmp_path), "train")


def test_names_that_differ_in_capitals_are_two_where_each_has_its_mask(tmp_path):
    put(tmp_path, *(f"train/{kind}/{name}.png" for kind in ("images", "masks") for name in ("aB", "Ab")))
    assert sorted(open_data(str(tmp_path), "train").source.names) == ["Ab", "aB"]


class Bright(nn.Module):
    size_multiple = 1

    def forward(self, x):
        return x[:, :1] * 8 + 1


LONG = ["x" * 240, "x" * 251, "\u65e5" * 83, "\U0001f600" * 62, NOT_UTF8 * 50]


@pytest.mark.parametrize("stem", [*LONG, NOT_UTF8, "a\x1b[2Kb", "a\nb", "[red]", "-a"])
def test_predictions_of_any_name_are_written(tmp_path, stem):
    """The names of the results are longer than the image's, which may fill a file system's limit."""
    put(tmp_path / "in", f"{stem}.png")
    found = predict(Bright(), [tmp_path / "in"], tmp_path / "out")
    assert found.failed == ()
    (written,) = (tmp_path / "out").glob("*.json")
    named = json.loads(written.read_text())["image"]
    assert named == str(tmp_path / "in" / f"{stem}.png")
    assert len(list((tmp_path / "out").iterdir())) == 3 + 2  # with the tables of all images
    if len(os.fsencode(stem)) < 230:
        assert written.stem == stem
    assert all(line.isprintable() for line in str(found).split("\n"))
    json.dumps(found.to_dict()).encode("ascii")


def test_long_names_with_one_beginning_do_not_overwrite_each_other(tmp_path):
    put(tmp_path / "in", *("x" * 245 + f"{place}.png" for place in range(3)))
    predict(Bright(), [tmp_path / "in"], tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 9 + 2


@pytest.mark.parametrize("names", [(f"a/{NFC}.png", f"b/{NFD}.png"), (f"a/{NFC}.png", f"a/{NFD}.png")])
def test_predictions_of_one_name_in_two_forms_are_refused(tmp_path, names):
    put(tmp_path, *names)
    with pytest.raises(BadInput, match=r"caf\\xe9.*have one stem|cafe\\u0301.*have one stem"):
        predict(Bright(), [tmp_path / name for name in names], tmp_path / "out")


def test_predict_says_what_it_left_out(tmp_path):
    put(tmp_path, "in/a.jfif", "in/deep/b.png")
    (tmp_path / "in/c.heic").write_bytes(b"x")
    found = predict(Bright(), [tmp_path / "in"], tmp_path / "out")
    assert [path.image for path in found.done] == [str(tmp_path / "in/a.jfif")]
    assert found.notes == ("left out: 1 file (.heic 1), 1 folder (deep)",)


@pytest.fixture
def _nobody_waits():
    def late(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_nobody_waits")
def test_images_that_are_no_files_cost_themselves_alone(tmp_path):
    root = put(tmp_path / "in", *(f"{name}.png" for name in "abcd"), "gone.png")  # not among those that are read ahead
    os.mkfifo(root / "pipe.png")
    (root / "device.png").symlink_to("/dev/zero")
    (root / "nowhere.png").symlink_to(root / "none")
    (root / "itself.png").symlink_to(root / "itself.png")
    (root / "folder.png").mkdir()
    (root / "empty.png").write_bytes(b"")

    class Last(Bright):
        def forward(self, x):
            (root / "gone.png").unlink(missing_ok=True)
            return super().forward(x)

    found = predict(Last(), [root], tmp_path / "out")
    assert [path.image for path in found.done] == [str(root / f"{name}.png") for name in "abcd"]
    failed = {os.path.basename(image): reason for image, reason in found.failed}
    assert failed.keys() == {"pipe.png", "device.png", "nowhere.png", "itself.png", "empty.png", "gone.png"}
    assert "it is no file but a pipe" in failed["pipe.png"]
    assert "it is no file but a device" in failed["device.png"]
    assert "No such file" in failed["gone.png"]


@pytest.mark.usefixtures("_nobody_waits")
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_pipe_among_training_images_is_named(tmp_path, kind):
    put(tmp_path, *(f"train/{each}/{name}.png" for each in ("images", "masks") for name in "ab"))
    (tmp_path / f"train/{kind}/a.png").unlink()
    os.mkfifo(tmp_path / f"train/{kind}/a.png")
    samples = open_data(str(tmp_path), "train")
    with pytest.raises(BadInput, match=f"{kind}/a.png: cannot be read: it is no file but a pipe"):
        samples.check(progress=False)
    put(tmp_path / "classes", "train/a/1.png", "train/b/1.png")
    os.mkfifo(tmp_path / "classes/train/a/2.png")
    with pytest.raises(BadInput, match=r"a/2.png: cannot be read: it is no file but a pipe"):
        open_labelled(str(tmp_path / "classes?val=0"), "train", size=8).check(progress=False)


@pytest.mark.usefixtures("_nobody_waits")
def test_a_pipe_among_parquet_files_is_named(tmp_path):
    os.mkfifo(tmp_path / "train-0.parquet")
    with pytest.raises(BadInput, match=r"train-0.parquet: cannot be read: it is no file but a pipe"):
        open_data(str(tmp_path), "train")


def test_the_suffixes_are_the_image_librarys(tmp_path):
    assert suffixes() >= {
        ".png",
        ".apng",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".tif",
        ".tiff",
        ".webp",
        ".bmp",
        ".gif",
        ".pgm",
    }
    assert not suffixes() & {".eps", ".ps", ".pdf", ".wmf", ".psd", ".mpg", ".hdf", ""}
