"""The part of `infer.py` that finds and reads pictures, as `leanconv predict` reads them, and says what is wrong."""

import sys

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM")
# The layouts of 16-bit colours, by PIL's names, and the other order of their bytes.
ORDERS = {f"{c};16{order}": f"{c};16{'L' if order == 'B' else 'B'}" for c in ("RGB", "RGBA", "RGBX") for order in "BLN"}
ORDERS["LA;16B"] = "RGBA"


def pictures(places):  # the files, and those of the folders
    Image.init()
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    for place in places:
        inside = sorted(p for p in place.iterdir() if p.suffix.lower() in known) if place.is_dir() else [place]
        if not inside:
            raise OSError(f"{place}: no pictures ({', '.join(FORMATS)} are read)")
        yield from (p for p in inside if p == place or (p.is_file() and p.name[0] != "."))


def ordered(tile, order):  # what PIL decodes, with its bytes in that order; tiles are plain tuples in an old PIL
    arguments = order if isinstance(tile[3], str) else (order, *tile[3][1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def opened(path, order=""):  # an upright picture, and the layout of its 16-bit values or ""; `order`: of their bytes
    Image.init()
    with Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN]) as image:  # an old PIL lacks some
        layout = image.tile[0][3] if image.tile else ""
        layout = layout if isinstance(layout, str) else str((*(layout or ()), "")[0])
        grey = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
        if not grey and image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK"):
            raise ValueError(f"pixels of kind {image.mode}; save it as grey or RGB")
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError("more than one page; save one page to a file")
        layout = "" if ";16" not in layout or image.mode not in ("L", "RGB", "RGBA") else layout
        if (grey and getattr(image, "tag_v2", {}).get(262) == 0) or (layout and not grey and layout not in ORDERS):
            raise ValueError("16 bits a value in an unusual form; save it as PNG")
        if order := order or ("RGBA" if layout == "LA;16B" else ""):  # grey and alpha: high and low byte of both
            image.tile = [ordered(each, order) for each in image.tile]
        return ImageOps.exif_transpose(image), "grey" if grey else layout


def read(path, bits):  # uint8 H W 3, upright; grey becomes three equal channels; of 16-bit values `bits` are used
    image, layout = opened(path)
    if not layout:
        return np.asarray((image.convert("RGBA") if "transparency" in image.info else image).convert("RGB"))
    if not bits:
        raise ValueError("16 bits a value, which this run did not learn; save it with 8")
    values = np.asarray(image).astype(np.int64)
    if layout == "LA;16B":
        values = values[..., 0] * 256 + values[..., 1]
    elif layout != "grey":  # PIL keeps the high byte of a colour; read in the other order, the low one
        values = values * 256 + np.asarray(opened(path, ORDERS[layout])[0])
    values = values[..., :3] if values.ndim == 3 else np.repeat(values[..., None], 3, 2)
    return (np.minimum(values, 2**bits - 1) * 255 // (2**bits - 1)).astype(np.uint8)


def said(error):  # one line, whatever the error says
    return f"error: {' '.join(str(error).split())[:300]}"


def run_to_end(main):  # an error is one line, and exit status 1
    try:
        sys.exit(main())
    except Exception as error:
        sys.exit(said(error))
