"""Opening and decoding image files that somebody else made: every way in which one can be bad is one clear line.

Only PNG, JPEG, WebP, BMP and TIFF decoders are tried. A file's own EXIF orientation is applied, to images and to masks:
annotation tools show the upright picture, and write masks that are upright and carry no tag.
"""

import io
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from leanconv.errors import BadInput, missing_extra

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
# PIL's own limit for an error (a warning at half of it): 537 MB as RGB. Larger files are never decoded.
MAX_PIXELS = 178_956_970
SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112

Source = Path | bytes

# What PIL logs about a damaged file would otherwise be printed beside our one line.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_size(source: Source, name: str) -> tuple[int, int]:
    """Height and width of the upright picture, from the header alone. Raises BadInput as the readers do."""
    with opened(source, name) as image:
        width, height = image.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                turned = image.getexif().get(_ORIENTATION) in _TURNED
            except Exception:  # a broken tag turns nothing; the readers judge the pixels
                turned = False
    return (width, height) if turned else (height, width)


def opened(source: Source, name: str) -> "Image":
    """The file with its header read and its size judged; not decoded yet."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_extra("pillow", "train") from error
    try:
        with warnings.catch_warnings():  # PIL warns from half of the limit on, and about odd tags
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadInput(f"{name}: more than {MAX_PIXELS} pixels; cut it into parts") from error
    except Image.UnidentifiedImageError as error:
        raise BadInput(
            f"{name}: not a readable PNG, JPEG, WebP, BMP or TIFF image (damaged, or another format)"
        ) from error
    except Exception as error:  # decoders raise whatever the bytes lead them to
        raise BadInput(f"{name}: cannot be opened: {_reason(error)}") from error
    if image.width * image.height > MAX_PIXELS:  # where a program has lifted PIL's own limit
        image.close()
        raise BadInput(f"{name}: {image.width}x{image.height}, more than {MAX_PIXELS} pixels; cut it into parts")
    return image


def decoded(source: Source, name: str, kind: str) -> "Image":
    """The decoded, upright picture. `kind` (image, mask) stands in the message. Raises BadInput naming the file."""
    from PIL import ImageOps

    with opened(source, name) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            turned = image.getexif().get(_ORIENTATION, 1) != 1
            upright = ImageOps.exif_transpose(image) if turned else image.copy()
        except Exception as error:  # decoders raise whatever the bytes lead them to
            raise BadInput(f"{name}: corrupt or truncated {kind}: {_reason(error)}") from error
    if pages > 1:
        raise BadInput(f"{name}: holds {pages} pages; save one page to a file")
    return upright


def channels(image: "Image") -> str:
    """What kind of pixels a picture has, for a message."""
    return f"{len(image.getbands())} channels of kind {image.mode}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
