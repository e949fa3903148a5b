"""Open and decode foreign image files; each possible fault becomes one clear line.

Only the decoders of the formats below are tried. A file's own EXIF orientation is applied, to images and to masks:
annotation tools show the upright picture, and write masks that are upright and carry no tag.
"""

import io
import logging
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.files import check_file

if TYPE_CHECKING:
    from PIL.Image import Image

# PIL's own error limit (it warns from half of it): 537 MB as RGB. Larger files are never decoded.
MAX_PIXELS = 178_956_970
# Networks need sides in multiples of 32: a strip one pixel high grows 32 times, still below MAX_PIXELS.
MAX_SIDE = 1 << 20

FORMAT_NAMES = "PNG, JPEG, WebP, AVIF, JPEG 2000, TIFF, BMP, GIF or PPM"
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")
_ALWAYS_LOSSY = ("JPEG", "MPO", "AVIF", "JPEG2000")  # the last two may be lossless, and do not say so in their header
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_WIDTH, _PHOTOMETRIC, _ORIENTATION = 256, 262, 274
_GREY16 = ("I;16", "I;16B", "I;16L", "I;16N")
# PIL keeps the high byte of 16-bit colours; read in the other byte order, it keeps the low one.
_LOW_BYTE = {
    "RGB;16B": "RGB;16L", "RGB;16L": "RGB;16B", "RGB;16N": "RGB;16B",
    "RGBA;16B": "RGBA;16L", "RGBA;16L": "RGBA;16B", "RGBA;16N": "RGBA;16B",
    "RGBX;16B": "RGBX;16L", "RGBX;16L": "RGBX;16B", "RGBX;16N": "RGBX;16B",
}  # fmt: skip
_GREY_ALPHA16 = "LA;16B"
_STEP = {"L;2": 85, "L;4": 17}  # grey of 2 and 4 bits, as it is shown with 8

Source = Path | bytes

# Otherwise PIL's log about a damaged file appears beside our one line.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class Header(NamedTuple):
    """The header of an image file, before decoding.

    Attributes:
        height, width: after the EXIF rotation.
        orientation: the EXIF tag; 1 is upright.
        mode: PIL's name of its kind of pixels, "RGB", "L", "P", "CMYK", ...
        deep: 16 bits a channel.
        lossy: compressed so that values change.
    """

    height: int
    width: int
    orientation: int
    mode: str
    deep: bool
    lossy: bool

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def kind(self) -> str:
        """The kind of pixels, for a message."""
        from PIL import ImageMode

        return f"{len(ImageMode.getmode(self.mode).bands)} channels of kind {self.mode}"


class Decoded(NamedTuple):
    """A decoded, upright image; `deep`: its values if they have 16 bits, uint16 `H W` or `H W C`."""

    image: "Image"
    header: Header
    deep: np.ndarray | None


@cache
def formats() -> tuple[str, ...]:
    """The readable formats, by PIL's names, if this PIL has their decoders."""
    Image = _pil()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def read_header(source: Source, name: str, *, whole: bool = False) -> Header:
    """Read the header; `whole`: also the metadata after the pixels. Raises BadInput for an unusable file."""
    with _opened(source, name) as image:
        return _header(image, source, name, whole=whole)


def decode(source: Source, name: str, kind: str = "image") -> Decoded:
    """Decode and rotate upright. `kind` (image, mask): for the message. Raises BadInput naming the file."""
    with _opened(source, name) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header, raw = _header(image, source, name), _raw_mode(image)
        try:
            if raw == _GREY_ALPHA16:
                _read_as(image, "RGBA")  # high and low byte of grey, then of alpha
            image.load()
            upright = _upright(image)
            deep = _deep(upright, raw, source, name) if header.deep else None
            if raw == _GREY_ALPHA16:
                upright = _high_bytes(upright)
        except BadInput:
            raise
        except Exception as error:  # decoders raise whatever the bytes lead them to
            raise BadInput(f"{name}: corrupt or truncated {kind}: {_reason(error)}") from error
    if raw in _STEP and "transparency" in upright.info:
        upright.info["transparency"] *= _STEP[raw]
    return Decoded(upright, header._replace(height=upright.height, width=upright.width), deep)


def _opened(source: Source, name: str) -> "Image":
    """The opened file, its header read and its size checked; not decoded yet."""
    Image = _pil()
    if not isinstance(source, bytes):
        check_file(source)
    try:
        with warnings.catch_warnings():  # PIL warns from half of the limit on, and about odd tags
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats())
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name}: more than {MAX_PIXELS} pixels; cut it into parts") from error
    except Image.UnidentifiedImageError as error:
        raise BadInput(f"{name}: not a readable {FORMAT_NAMES} image (damaged, or another format)") from error
    except Exception as error:  # decoders raise whatever the bytes lead them to
        raise BadInput(f"{name}: cannot be opened: {_reason(error)}") from error
    if says := _why_not(image):
        image.close()
        raise BadInput(f"{name}: {says}")
    return image


def _why_not(image: Any) -> str:
    """Why a file is unusable, by its header; empty if it is usable."""
    if image.width * image.height > MAX_PIXELS:  # if a program has lifted PIL's own limit
        return f"{image.width}x{image.height}, more than {MAX_PIXELS} pixels; cut it into parts"
    if max(image.size) > MAX_SIDE:
        return f"{image.width}x{image.height}, a side of more than {MAX_SIDE} pixels; cut it into parts"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return "holds more than one page; save one page to a file"
    if image.mode in _GREY16 and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
        return "16 bits of which 0 is white; save it with 0 as black"
    if image.format == "BMP" and not _bmp_as_shown(image):
        return "a BMP whose palette of greys is read as other pixels; save it as PNG"
    return ""


def _bmp_as_shown(image: Any) -> bool:
    """Whether Pillow reads all bits of a pixel: it drops some if a palette is black and white."""
    image.fp.seek(0)
    head = image.fp.read(30)
    place = 24 if head[14:18] == b"\x0c\0\0\0" else 28
    bits = int.from_bytes(head[place : place + 2], "little")
    return bits == {"1": 1, "L": 8}.get(image.mode, bits)


def _header(image: "Image", source: Source, name: str, *, whole: bool = False) -> Header:
    (width, height), raw, orientation = image.size, _raw_mode(image), 1
    with warnings.catch_warnings(), suppress(Exception):  # a broken tag turns nothing; decoding judges the pixels
        warnings.simplefilter("ignore")
        # A PNG's own `getexif` decodes the picture to find a tag that stands behind the pixels.
        exif = image.getexif() if whole else _pil().Image.getexif(image)
        orientation = exif.get(_ORIENTATION, 1)
    stored = getattr(image, "tag_v2", {}).get(_WIDTH, width)  # PIL has turned the size of a TIFF already
    if orientation in _TURNED and stored == width:
        width, height = height, width
    deep = image.mode in _GREY16 or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if ";16" in raw and not deep and image.mode in ("L", "RGB", "RGBA"):
        if raw not in (*_LOW_BYTE, _GREY_ALPHA16):
            raise BadInput(f"{name}: 16 bits a channel in the order {raw}, which is not read; save it as PNG")
        deep = True
    mode = "LA" if raw == _GREY_ALPHA16 else image.mode
    return Header(height, width, orientation, mode, deep, _is_lossy(image, source))


def _raw_mode(image: "Image") -> str:
    """The file's pixel layout, by PIL's name; empty if PIL does not tell it."""
    tiles: Any = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) else next(iter(arguments or ()), ""))


def _read_as(image: Any, raw: str) -> None:
    """Make PIL read the pixels in another layout than the file's own."""
    tiles = []
    for tile in image.tile:
        arguments = raw if isinstance(tile[3], str) else (raw, *tile[3][1:])
        tiles.append(tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments))
    image.tile = tiles


def _deep(upright: "Image", raw: str, source: Source, name: str) -> np.ndarray:
    """The values of 16 bits."""
    if raw not in _LOW_BYTE and raw != _GREY_ALPHA16:
        return np.asarray(upright).astype(np.uint16)
    high = np.asarray(upright).astype(np.uint16)
    if raw == _GREY_ALPHA16:
        return high[..., ::2] * np.uint16(256) + high[..., 1::2]  # H W (grey, alpha)
    with _opened(source, name) as again:
        _read_as(again, _LOW_BYTE[raw])
        again.load()
        return high * np.uint16(256) + np.asarray(_upright(again))


def _high_bytes(image: "Image") -> "Image":
    from PIL import Image

    return Image.merge("LA", (image.getchannel(0), image.getchannel(2)))


def _upright(image: "Image") -> "Image":
    from PIL import ImageOps

    turned = image.getexif().get(_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def _is_lossy(image: "Image", source: Source) -> bool:
    if image.format == "WEBP":
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            file.seek(12)
            while len(chunk := file.read(8)) == 8:
                if chunk[:4] in (b"VP8 ", b"VP8L"):
                    return chunk[:4] == b"VP8 "
                size = int.from_bytes(chunk[4:], "little")
                file.seek(size + size % 2, 1)
        return True
    return image.format in _ALWAYS_LOSSY or "jpeg" in str(image.info.get("compression"))


def _pil() -> Any:
    with needs("pillow", "train"):
        from PIL import Image
    return Image


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
