"""Reading image and mask files that somebody else made: every way in which one can be bad is one clear line.

Only PNG, JPEG, WebP, BMP and TIFF decoders are tried. A file's own EXIF orientation is applied, to images and to masks:
annotation tools show the upright picture, and write masks that are upright and carry no tag.
"""

import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import BadInput, missing_extra

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
# PIL's own limit for an error (a warning at half of it): 537 MB as RGB. Larger files are never decoded.
MAX_PIXELS = 178_956_970

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112

Source = Path | bytes

# What PIL logs about a damaged file would otherwise be printed beside our one line.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_image(source: Source, name: str) -> Tensor:
    """The picture as uint8 `3 H W`.

    Grey becomes three equal channels, alpha is dropped, 16-bit grey is divided by 257 (a fixed scale: images stay
    comparable). Raises BadInput naming the file for anything that is no such picture.
    """
    pixels = _pixels(source, name, "image")
    if pixels.mode in _SIXTEEN_BIT:
        grey = (np.asarray(pixels).astype(np.uint32) // 257).astype(np.uint8)
        return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
    if pixels.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise BadInput(f"{name}: {_channels(pixels)}; save it as grey or RGB with 8 bits a channel")
    rgb = np.array(pixels.convert("RGB"))  # H W 3
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()  # H W 3 -> 3 H W


def read_mask(source: Source, name: str, classes: int = 2, threshold: int | None = None) -> Tensor:
    """The mask as uint8 class indices `H W`.

    Two classes: the file holds 0 and 1, or 0 and 255 (or is 1-bit); with `threshold`, a grey of at least that is 1.
    More classes: the file's values, or palette indices, are the class indices.
    Raises: BadInput naming the file and its values where they are neither.
    """
    values = _grey(_pixels(source, name, "mask"), name, classes)
    if threshold is not None:
        return torch.from_numpy((values >= threshold).astype(np.uint8))
    present = np.unique(values).tolist()
    if (
        classes == 2
        and (len(present) == 1 or present[0] == 0)
        and len(present) <= 2
        and present[-1] in (0, 1, 255, 65535)
    ):
        return torch.from_numpy((values > 0).astype(np.uint8))
    if present[-1] < classes:
        return torch.from_numpy(values.astype(np.uint8))
    shown = ", ".join(str(value) for value in present[:6]) + (", ..." if len(present) > 6 else "")
    if classes == 2:
        raise BadInput(
            f"{name}: non-binary mask, it holds {len(present)} values ({shown}); write 0 and 255, or say threshold=128 "
            "for soft edges, or classes=N for class indices"
        )
    raise BadInput(f"{name}: the mask holds {shown}; classes={classes} takes the values 0 to {classes - 1}")


def read_size(source: Source, name: str) -> tuple[int, int]:
    """Height and width of the upright picture, from the header alone. Raises BadInput as the readers do."""
    with _opened(source, name) as image:
        width, height = image.size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                turned = image.getexif().get(_ORIENTATION) in _TURNED
            except Exception:  # a broken tag turns nothing; the readers judge the pixels
                turned = False
    return (width, height) if turned else (height, width)


def listing(names: Iterable[str], at_most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def mirror(start: int, stop: int, size: int, device: Any = None) -> Tensor:
    """Indices into an axis of `size` for the places start ... stop - 1, mirrored (edge not repeated) outside of it."""
    period = max(2 * (size - 1), 1)
    place = torch.arange(start, stop, device=device) % period
    return torch.minimum(place, period - place) if size > 1 else place


def _opened(source: Source, name: str) -> "Image":
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


def _pixels(source: Source, name: str, kind: str) -> "Image":
    """The decoded, upright picture."""
    from PIL import ImageOps

    with _opened(source, name) as image, warnings.catch_warnings():
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


def _grey(mask: "Image", name: str, classes: int) -> np.ndarray:
    """One number per pixel, `H W`."""
    if mask.mode == "P":
        return _palette(mask, classes)
    if mask.mode == "1":
        return np.asarray(mask.convert("L"))
    if mask.mode in ("L", *_SIXTEEN_BIT):
        return np.asarray(mask)
    if mask.mode == "LA":
        return np.asarray(mask)[..., 0]
    if mask.mode in ("RGB", "RGBA"):
        colours = np.asarray(mask)[..., :3]
        if (colours[..., :1] == colours).all():
            return colours[..., 0]
        raise BadInput(f"{name}: the mask has colours; save it with one channel, or as a palette PNG of class indices")
    raise BadInput(f"{name}: {_channels(mask)}; save the mask with one channel of 8 bits")


def _palette(mask: "Image", classes: int) -> np.ndarray:
    """Indices; but the greys where a shrinking tool turned black and white into a palette, in whatever order."""
    indices = np.asarray(mask)
    if classes == 2:
        table = np.zeros((256, 3), np.uint8)
        entries = np.asarray(mask.getpalette("RGB"), np.uint8).reshape(-1, 3)
        table[: len(entries)] = entries
        used = table[np.unique(indices)]
        if (used == used[:, :1]).all() and np.isin(used, (0, 255)).all():
            return table[indices, 0]
    return indices


def _channels(image: "Image") -> str:
    return f"{len(image.getbands())} channels of kind {image.mode}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__).splitlines()[0]
