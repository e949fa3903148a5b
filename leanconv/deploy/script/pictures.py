"""The part of `infer.py` that finds and reads pictures, as `leanconv predict` reads them, and says what is wrong."""

import sys

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")


def pictures(places):  # the files, and those of the folders
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    for place in places:
        inside = sorted(p for p in place.iterdir() if p.suffix.lower() in known) if place.is_dir() else [place]
        if not inside:
            raise OSError(f"{place}: no pictures ({', '.join(FORMATS)} are read)")
        yield from (p for p in inside if p == place or (p.is_file() and p.name[0] != "."))


def read(path, bits):  # uint8 H W 3, upright; grey becomes three equal channels; of 16-bit grey `bits` are used
    Image.init()
    with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:  # an old PIL lacks some
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        if not deep and image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK"):
            raise ValueError(f"pixels of kind {image.mode}; save it as grey or RGB")
        white_is_0 = getattr(image, "tag_v2", {}).get(262) == 0
        if (";16" in str(image.tile) and not deep) or (deep and (white_is_0 or not bits)):
            raise ValueError("16 bits a value, which this run did not learn; save it with 8")
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError("more than one page; save one page to a file")
        upright = ImageOps.exif_transpose(image)
    if deep:
        grey = np.minimum(np.asarray(upright).astype(np.int64), 2**bits - 1) * 255 // (2**bits - 1)
        return np.repeat(grey[..., None].astype(np.uint8), 3, 2)
    return np.asarray((upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB"))


def said(error):  # one line, whatever the error says
    return f"error: {' '.join(str(error).split())[:300]}"


def run_to_end(main):  # an error is one line, and exit status 1
    try:
        sys.exit(main())
    except Exception as error:
        sys.exit(said(error))
