"""Masks: number, shown colour and transparency of a pixel may contradict each other; then nothing is guessed."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from leanconv.errors import BadInput, UnknownName
from leanconv.train.data.samples import open_data

IGNORE = 255
INDICES = (np.arange(6 * 8).reshape(6, 8) % 3).astype(np.uint8)
SHAPE = np.zeros((6, 8), np.uint8)
SHAPE[2:5, 3:7] = 1
BLACK, RED, GREEN, BLUE, WHITE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def png(image, **options):
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        file, options.pop("format", "PNG"), **options
    )
    return file.getvalue()


def palette(indices, *colours):
    image = Image.fromarray(indices)
    image.putpalette([part for colour in colours for part in colour])
    return image


def painted(indices, *colours):
    return np.array(colours, np.uint8)[indices]


def raw_png(rows, width, depth, kind, *chunks):
    """A PNG of bytes that no Pillow writes: `rows` of samples, `kind` the colour type."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), *(chunk(*each) for each in chunks), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture
def read(tmp_path):
    """Masks (bytes) read as a data set's, with the options of its reference."""

    def read(*masks, options="", parquet=False, suffix="png"):
        root = tmp_path / "data"
        for kind in ("images", "masks"):
            (root / "train" / kind).mkdir(parents=True, exist_ok=True)
        for place, mask in enumerate(masks):
            size = Image.open(io.BytesIO(mask)).size
            Image.new("RGB", size).save(root / "train/images" / f"{place}.png")
            (root / "train/masks" / f"{place}.{suffix}").write_bytes(mask)
        samples = open_data(f"{root}{options}", "train")
        found = [samples[place].mask.numpy() for place in range(len(masks))]
        return found[0] if len(found) == 1 else found

    return read


def refused(read, *masks, says, options="", **more):
    with pytest.raises(BadInput, match=says) as error:
        read(*masks, options=options, **more)
    assert "\n" not in str(error.value)
    assert "masks/" in str(error.value)


# Greys, and the palettes that shrinking tools make of them


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_greys_that_became_a_palette_keep_their_classes(read, order, bits):
    """As oxipng and `quantize` store them: the palette in any order, as few bits as it takes."""
    place = np.argsort(order).astype(np.uint8)  # grey -> index
    shrunk = palette(place[INDICES], *((grey,) * 3 for grey in order))
    np.testing.assert_array_equal(read(png(shrunk, bits=bits), options="?classes=3"), INDICES)


def test_pillows_quantize_keeps_the_classes(read):
    for source in (INDICES, np.repeat(INDICES[..., None], 3, 2)):
        np.testing.assert_array_equal(read(png(Image.fromarray(source).quantize()), options="?classes=3"), INDICES)
    for dark, bright in ((0, 1), (0, 255)):
        shrunk = png(Image.fromarray(np.where(SHAPE, bright, dark).astype(np.uint8)).quantize())
        np.testing.assert_array_equal(read(shrunk), SHAPE)


def test_a_threshold_is_of_the_shown_grey(read):
    soft = np.array([[0, 90, 200], [255, 127, 128]], np.uint8)
    shrunk = Image.fromarray(soft).quantize(256)
    assert np.asarray(shrunk)[0, 0] > 0  # its palette runs from bright to dark
    np.testing.assert_array_equal(read(png(shrunk), options="?threshold=128"), soft >= 128)
    refused(read, png(palette(SHAPE, BLACK, RED)), options="?threshold=128", says="palette has colours")


def test_a_threshold_of_another_depth_is_refused(read):
    refused(read, png(SHAPE * 255), options="?threshold=300", says="threshold=300 is for 16 bits, the mask has 8")
    deep = SHAPE.astype(np.uint16) * 3000
    refused(read, png(deep), options="?threshold=128", says="16 bits, up to 3000.*say one above 255")
    np.testing.assert_array_equal(read(png(deep), options="?threshold=2000"), SHAPE)


def test_greys_that_a_viewer_shows_apart_are_no_class_indices(read):
    """Indices 0 1 2 shown as 0, 128, 255: the grey file of them is refused, and so is its shrunk form."""
    shown = painted(INDICES, BLACK, (128,) * 3, WHITE)
    for stored in (png(shown[..., 0].copy()), png(palette(INDICES, BLACK, (128,) * 3, WHITE))):
        refused(read, stored, options="?classes=3", says="holds 0, 128, 255; classes=3 takes the values 0 to 2")
    refused(read, png(palette(INDICES, BLACK, (128,) * 3, WHITE)), options="?classes=3", says="palette=index")
    chosen = read(png(palette(INDICES, BLACK, (128,) * 3, WHITE)), options="?classes=3&palette=index")
    np.testing.assert_array_equal(chosen, INDICES)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_greys_of_few_bits_are_what_a_viewer_shows(read, depth):
    """Two bits of a grey PNG are shown as 0, 85, 170, 255."""
    top = 2**depth - 1
    row = bytes([top << 8 - depth])  # the first pixel white, the other black
    np.testing.assert_array_equal(read(raw_png([row], 2, depth, 0)), [[1, 0]])
    if depth > 1:
        refused(read, raw_png([bytes([1 << 8 - depth])], 2, depth, 0), says="non-binary")


# Palettes with colours


def test_the_indices_of_a_coloured_palette_are_the_classes(read):
    voc = palette(INDICES, BLACK, (128, 0, 0), (0, 128, 0))
    np.testing.assert_array_equal(read(png(voc), options="?classes=3"), INDICES)
    np.testing.assert_array_equal(read(png(palette(SHAPE, BLACK, RED))), SHAPE)
    empty = palette(np.zeros_like(INDICES), BLACK, (128, 0, 0), (0, 128, 0))
    found = read(png(voc), png(empty), png(voc), options="?classes=3")
    assert [mask.max() for mask in found] == [2, 0, 2]
    # Of PASCAL's own 21 colours index 7 is a grey.
    car = palette(np.where(SHAPE, 7, 0).astype(np.uint8), BLACK, *[(9, 0, i) for i in range(6)], (128, 128, 128))
    np.testing.assert_array_equal(read(png(car), options="?classes=21"), SHAPE * 7)


@pytest.mark.parametrize(
    ("colours", "says"),
    [
        ((RED, BLACK, GREEN), "index 1 is shown black"),
        ((BLACK, RED, RED), "indices 1 and 2 are shown in one colour, ff0000"),
        ((BLACK, GREEN, BLACK), "index 2 is shown black"),
    ],
)
def test_a_palette_that_contradicts_its_indices_is_refused(read, colours, says):
    stored = png(palette(INDICES, *colours, BLUE))
    refused(read, stored, options="?classes=3", says=says)
    np.testing.assert_array_equal(read(stored, options="?classes=3&palette=index"), INDICES)


def test_colours_that_were_shrunk_to_a_palette_are_refused(read):
    """`quantize` deals indices anew in every file; the colours say the classes."""
    shrunk = png(Image.fromarray(painted(INDICES, BLACK, RED, GREEN)).quantize())
    assert not np.array_equal(np.asarray(Image.open(io.BytesIO(shrunk))), INDICES)
    refused(read, shrunk, options="?classes=3", says="shown black.*say palette=index.*or colors=000000,")
    np.testing.assert_array_equal(read(shrunk, options="?colors=000000,ff0000,00ff00"), INDICES)


def test_palettes_that_differ_between_files_are_refused(read):
    """Each file alone is fine: black is 0. Together index 1 is red here and green there."""
    first, second = png(palette(SHAPE, BLACK, RED)), png(palette(SHAPE, BLACK, GREEN))
    refused(read, first, second, says=r"shows index 1 as 00ff00, .*0\.png as ff0000; say palette=index")
    third = png(palette(SHAPE * 2, BLACK, BLUE, RED))
    refused(read, first, third, options="?classes=3", says=r"shows ff0000 as index 2, .*0\.png as 1")


@pytest.mark.parametrize("colours", [b"", b"\0\0\0", b"\xff\xff\xff"], ids=["none", "black", "white"])
def test_an_index_without_a_colour_is_refused(read, colours):
    stored = raw_png([bytes([0, 1])], 2, 8, 3, *([(b"PLTE", colours)] if colours else []))
    refused(read, stored, says="its palette has no colour for .*1; say palette=index")
    np.testing.assert_array_equal(read(stored, options="?palette=index"), [[0, 1]])


def test_black_and_white_in_a_standard_palette(read):
    """Converted with a palette of many colours, white has a high index: what is shown counts."""
    web = Image.fromarray(painted(SHAPE, BLACK, WHITE)).convert("P", palette=Image.Palette.WEB)
    assert np.asarray(web).max() > 1
    np.testing.assert_array_equal(read(png(web)), SHAPE)
    refused(read, png(palette(SHAPE, WHITE, BLACK, RED)), says="shows the indices 0, 1 as the greys 255, 0|shown black")


def test_0_and_255_of_a_coloured_palette_are_not_black_and_white(read):
    colours = [BLACK, (128, 0, 0)] + [(i, 7, 9) for i in range(2, 255)] + [(224, 224, 192)]
    edge = png(palette(SHAPE * 255, *colours))
    refused(read, edge, says="palette indices 0, 255; classes=2 takes the values 0 to 1; or ignore=255")
    np.testing.assert_array_equal(read(edge, options="?ignore=255"), SHAPE * IGNORE)


# Transparency


def rgba(colour, alpha):
    return np.dstack([painted(np.zeros_like(SHAPE), colour), alpha])


@pytest.mark.parametrize("colour", [BLACK, WHITE, (1, 1, 1)])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "P"])
def test_a_shape_in_the_transparency_of_one_colour_is_refused(read, colour, kind):
    stored = Image.fromarray(rgba(colour, SHAPE * 255)).convert("RGBA")
    stored = stored.quantize() if kind == "P" else stored.convert(kind)
    hexed = "".join(f"{part:02x}" for part in colour)
    refused(read, png(stored), says=f"transparen.*colors=transparent,{'.' if kind == 'P' else hexed}")
    if kind != "P":  # quantize stores other colours where nothing is shown
        np.testing.assert_array_equal(read(png(stored), options=f"?colors=transparent,{hexed}"), SHAPE)


def test_transparency_that_says_the_same_again_is_taken(read):
    both = np.dstack([painted(SHAPE, BLACK, WHITE), SHAPE * 255])
    np.testing.assert_array_equal(read(png(both)), SHAPE)
    opaque = np.dstack([painted(SHAPE, BLACK, WHITE), np.full_like(SHAPE, 255)])
    np.testing.assert_array_equal(read(png(opaque)), SHAPE)
    np.testing.assert_array_equal(read(png(palette(SHAPE, BLACK, RED), transparency=0)), SHAPE)
    np.testing.assert_array_equal(read(png(SHAPE * 255, transparency=0)), SHAPE)


def test_transparent_pixels_of_every_kind_are_seen(read):
    says = "transparen"
    refused(read, png(palette(SHAPE, BLACK, RED), transparency=1), says=says)
    refused(read, png(palette(SHAPE, BLACK, RED), transparency=b"\x80\xff"), says="half transparent")
    refused(read, png(SHAPE * 255, transparency=255), says=says)
    refused(read, png(Image.fromarray(painted(SHAPE, BLACK, WHITE)), transparency=WHITE), says=says)
    refused(read, png(SHAPE.astype(np.uint16) * 65535, transparency=65535), says=says)
    refused(read, png(SHAPE.astype(bool), transparency=255), says=says)
    refused(read, raw_png([b"\xc0"], 2, 2, 0, (b"tRNS", b"\0\3")), says=says)  # 2 bits: white, transparent
    soft = np.dstack([SHAPE * 255, np.where(SHAPE, 255, 40).astype(np.uint8)])
    refused(read, png(Image.fromarray(soft)), says="half transparent")


# Colours by option


def test_colours_are_classes_by_option_whatever_stores_them(read):
    colours = (BLACK, (128, 0, 0), (0, 128, 0))
    shown = Image.fromarray(painted(INDICES, *colours))
    options = "?colors=000000,800000,#008000"
    for stored in (shown, shown.convert("RGBA"), shown.quantize(), palette(2 - INDICES, *colours[::-1])):
        np.testing.assert_array_equal(read(png(stored), options=options), INDICES)
    np.testing.assert_array_equal(read(png(shown, format="WEBP", lossless=True), options=options), INDICES)
    greys = "?colors=000000,808080,ffffff"
    np.testing.assert_array_equal(
        read(png(painted(INDICES, BLACK, (128,) * 3, WHITE)[..., 0].copy()), options=greys), INDICES
    )
    swapped = read(png(painted(SHAPE, WHITE, BLACK)), options="?colors=ffffff,000000")
    np.testing.assert_array_equal(swapped, SHAPE)
    joined = read(png(shown), options="?colors=000000,800000+008000")
    np.testing.assert_array_equal(joined, INDICES > 0)


def test_a_colour_of_no_class_is_counted_and_shown(read):
    edged = painted(INDICES, BLACK, RED, GREEN)
    edged[3, 5] = edged[4, 6] = (127, 0, 0)
    refused(
        read,
        png(edged),
        options="?colors=000000,ff0000,00ff00",
        says="2 of 48 pixels have a colour of no class, the first 7f0000 at column 5, row 3; known: 000000, 00ff00, ff",
    )
    refused(read, png(painted(INDICES, BLACK, RED, GREEN)), says="has colours .*ff0000.*colors=000000,RRGGBB")
    deep = raw_png([struct.pack(">3H", 5, 6, 7)], 1, 16, 2)
    refused(read, deep, options="?colors=000000,ffffff", says="8 bits a channel, the mask has more")


@pytest.mark.parametrize(
    "text",
    [
        "background #000000\nscratch #800000\nstain #008000\n",
        "\ufeffname,r,g,b\nbackground,0,0,0\nscratch,128,0,0\nstain,0,128,0\n",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nscratch:128,0,0::\nstain:0,128,0::\n",
        "0 0 0\tbackground\n128 0 0\tscratch\n0 128 0\tstain\n",
    ],
)
def test_a_file_of_colours(read, tmp_path, text):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "labels.txt").write_text(text, encoding="utf-8")
    stored = png(painted(INDICES, BLACK, (128, 0, 0), (0, 128, 0)))
    np.testing.assert_array_equal(read(stored, options="?colors=labels.txt"), INDICES)
    samples = open_data(f"{tmp_path / 'data'}?colors={tmp_path / 'data' / 'labels.txt'}", "train")
    assert samples.classes == ("background", "scratch", "stain")
    samples = open_data(f"{tmp_path / 'data'}?colors=labels.txt&ignore=800000", "train")
    assert samples.classes == ("background", "stain")
    np.testing.assert_array_equal(samples[0].mask, np.array([0, IGNORE, 1])[INDICES])


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ("colors=000000,ff000", BadInput, "a file of them; no such file"),
        (f"colors={'000000,' * 99}ff000", BadInput, "a file of them; no such file"),
        ("colors=~nobody-of-that-name/map.txt", BadInput, "a file of them; no such file"),
        ("colors=ff0000,ff0000", BadInput, "ff0000 stands for two classes"),
        ("colors=a:000000,ff0000", BadInput, "some classes have names and some have none"),
        ("colors=000000,ff0000&classes=3", BadInput, "classes= says 3 classes, colors= 2"),
        ("colors=000000,ff0000&ignore=255", BadInput, "ignore=255: with colors= a colour"),
        ("colors=000000,ff0000&threshold=9", BadInput, "leave out threshold="),
        ("colors=000000", BadInput, "2 to 255 different names"),
        ("colors=odd.txt", BadInput, r"odd\.txt, line 2: 'what\?'"),
        ("colors=none.txt", BadInput, r"none\.txt: holds no colour"),
        ("colors=large.txt", BadInput, r"large\.txt: has 1,100,000 bytes"),
        ("colors=bytes.txt", BadInput, r"bytes\.txt: cannot be read"),
        ("ignore=x", BadInput, "ignore=x: a whole number from 0"),
        ("palette=colour", BadInput, "palette=colour: index, or leave it out"),
        ("colours=1", UnknownName, "did you mean 'colors'"),
    ],
)
def test_options_of_masks_that_say_nothing(read, tmp_path, options, kind, says):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/odd.txt").write_text("background 0 0 0\nwhat?\n")
    (tmp_path / "data/none.txt").write_text("nothing\n")
    (tmp_path / "data/large.txt").write_text("0 0 0 a\n" * 137500)
    (tmp_path / "data/bytes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(kind, match=says) as error:
        read(png(SHAPE), options=f"?{options}")
    assert "\n" not in str(error.value)


# The ignore label, other numbers and other formats


def test_the_ignore_label(read):
    marked = INDICES.copy()
    marked[0] = 255
    truth = np.where(marked == 255, IGNORE, INDICES)
    np.testing.assert_array_equal(read(png(marked), options="?classes=3&ignore=255"), truth)
    refused(read, png(marked), options="?classes=3", says="0, 1, 2, 255; classes=3.*or ignore=255")
    halves = np.where(SHAPE, 255, 0).astype(np.uint8)
    halves[0] = 128
    np.testing.assert_array_equal(read(png(halves), options="?ignore=128"), np.where(halves == 128, IGNORE, SHAPE))
    soft = read(png(halves), options="?ignore=128&threshold=100")
    np.testing.assert_array_equal(soft, np.where(halves == 128, IGNORE, SHAPE))
    shown = painted(INDICES, BLACK, RED, WHITE)
    np.testing.assert_array_equal(
        read(png(shown), options="?colors=000000,ff0000&ignore=ffffff"), np.where(INDICES == 2, IGNORE, INDICES)
    )
    clear = np.dstack([painted(SHAPE, BLACK, RED), np.full_like(SHAPE, 255)])
    clear[0, :, 3] = 0
    found = read(png(clear), options="?colors=000000,ff0000&ignore=transparent")
    assert (found[0] == IGNORE).all()
    np.testing.assert_array_equal(found[1:], SHAPE[1:])


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_numbers_of_every_width_are_the_classes(read, kind):
    stored = png(INDICES.astype(kind), format="TIFF" if kind != np.uint16 else "PNG")
    np.testing.assert_array_equal(read(stored, options="?classes=3", suffix="tif"), INDICES)
    whole = np.where(SHAPE, 65535, 0).astype(kind)
    np.testing.assert_array_equal(read(png(whole, format="TIFF"), suffix="tif"), SHAPE)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e30, -1.0])
def test_numbers_that_are_no_classes_are_refused(read, value):
    stored = png(np.where(SHAPE, value, 0).astype(np.float32), format="TIFF")
    refused(read, stored, suffix="tif", says="whole ones|non-binary")


def test_sixteen_bits_of_colour_lose_nothing_unsaid(read):
    """Only the high byte of such a colour would be seen: 0 and 1 would both be 0."""
    rows = [struct.pack(">6H", *[value] * 3, 0, 0, 0) for value in (1, 0)]
    refused(read, raw_png(rows, 2, 16, 2), says="16 bits a channel in colour")
    rows = [struct.pack(">6H", *[value] * 3, 0, 0, 0) for value in (65535, 0)]
    np.testing.assert_array_equal(read(raw_png(rows, 2, 16, 2)), [[1, 0], [0, 0]])
    rows = [struct.pack(">4H", 1, 65535, 0, 65535)]
    np.testing.assert_array_equal(read(raw_png(rows, 2, 16, 4)), [[1, 0]])
    refused(read, raw_png([struct.pack(">4H", 1, 65535, 1, 0)], 2, 16, 4), says="transparen")


def test_lossy_masks_are_refused(read):
    truth = np.zeros((32, 32), np.uint8)
    truth[5:21, 9:27] = 255
    for suffix, options in {"jpg": {"format": "JPEG"}, "webp": {"format": "WEBP", "quality": 60}}.items():
        stored = png(Image.fromarray(truth), **options)
        refused(read, stored, suffix=suffix, says="change values .*threshold=128")
        found = read(stored, suffix=suffix, options="?threshold=128")
        np.testing.assert_array_equal(found, truth > 0)
        (read.__closure__[0].cell_contents / "data/train/masks" / f"0.{suffix}").unlink()
    classes = png(np.full((16, 16), 2, np.uint8), format="JPEG")
    refused(read, classes, suffix="jpg", options="?classes=3", says="save masks of classes as PNG")
    blank = np.zeros((16, 16), np.uint8)
    (read.__closure__[0].cell_contents / "data/train/masks/0.jpg").unlink()
    np.testing.assert_array_equal(read(png(blank, format="WEBP", lossless=True), suffix="webp"), blank)


def test_a_bmp_that_pillow_misreads_is_refused(read):
    """Eight bits a pixel and a palette of black and white: Pillow reads one bit a pixel."""
    stored = png(palette(SHAPE, BLACK, WHITE), format="BMP")
    refused(read, stored, suffix="bmp", says="a BMP whose palette of greys")
    np.testing.assert_array_equal(read(png(SHAPE * 255, format="BMP"), suffix="bmp"), SHAPE)


def test_soft_edges_and_several_pages_are_refused(read):
    edged = (SHAPE * 255).astype(np.uint8)
    edged[2, 3] = 131
    refused(read, png(edged), says="non-binary mask, it holds 3 values .*threshold=128")
    pages = [Image.fromarray(SHAPE * 255), Image.fromarray(SHAPE)]
    for form in ("PNG", "TIFF", "WEBP"):
        stored = png(pages[0].convert("RGB"), format=form, save_all=True, append_images=[pages[1].convert("RGB")])
        refused(read, stored, says="more than one page")


def test_interlaced_and_colour_managed_masks_read_the_same(read):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read(png(SHAPE * 255, icc_profile=profile)), SHAPE)
    gamma = raw_png([b"\xff\0\xff"], 3, 8, 0, (b"gAMA", struct.pack(">I", 220000)))
    np.testing.assert_array_equal(read(gamma), [[1, 0, 1]])


def test_a_mask_that_fits_its_images_stored_pixels_is_told_of_the_tag(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "train/images/a.jpg", exif=exif)
    Image.fromarray(SHAPE * 255).save(tmp_path / "train/masks/a.png")
    with pytest.raises(BadInput, match=r"8x6 .* its image 6x8; turn it as the image's EXIF tag does, or remove"):
        open_data(str(tmp_path), "train").check()
    Image.fromarray(np.rot90(SHAPE * 255, -1).copy()).save(tmp_path / "train/masks/a.png")
    samples = open_data(str(tmp_path), "train")
    samples.check()
    assert "other EXIF orientations" in samples.remarks()[0]
    Image.new("RGB", (6, 8)).save(tmp_path / "train/images/a.jpg")
    assert not open_data(str(tmp_path), "train").remarks()
