"""The transparency of a mask file: it must agree with the classes."""

from typing import TYPE_CHECKING

import numpy as np

from leanconv.train.data.colours import written
from leanconv.train.data.decode import Decoded

if TYPE_CHECKING:
    from PIL.Image import Image


class Unclear(Exception):
    """Why the classes of a mask are unclear; the caller adds the file's name."""


def check_transparency(mask: Decoded, *, background: np.ndarray, judged: np.ndarray) -> None:
    """Raise Unclear unless exactly the background is transparent, or nothing is.

    `background`, `judged`: bool `H W`, the pixels of class 0 and those of any class.
    """
    alpha = _alpha(mask)
    if alpha is None or (alpha == 255).all():
        return
    refuse_half_transparent(alpha)
    clear = alpha == 0
    wrong, opaque = int((clear & judged & ~background).sum()), int((~clear & judged & background).sum())
    if wrong or opaque:
        what = f"{wrong} transparent pixels are no background" if wrong else f"{opaque} opaque pixels are background"
        opaques = [] if mask.deep is not None else np.asarray(mask.image.convert("RGBA"))[~clear][:1].tolist()
        red, green, blue, _ = next(iter(opaques), (255, 255, 255, 255))
        raise Unclear(
            f"transparency and colour differ: {int(clear.sum())} pixels are transparent, and {what}; say which is "
            f"which, as in colors=transparent,{written(red << 16 | green << 8 | blue)}, or save it without transparency"
        )


def refuse_half_transparent(alpha: np.ndarray) -> None:
    if ((alpha > 0) & (alpha < 255)).any():
        raise Unclear(f"{int(((alpha > 0) & (alpha < 255)).sum())} pixels are half transparent; save it without alpha")


def _alpha(mask: Decoded) -> np.ndarray | None:
    """uint8 `H W`, or None where the file has no transparency."""
    image = mask.image
    if not ("A" in image.getbands() or "transparency" in image.info or "A" in _palette_mode(image)):
        return None
    if mask.deep is not None and mask.deep.ndim == 2:
        return np.where(mask.deep == image.info["transparency"], 0, 255).astype(np.uint8)
    return np.asarray(image.convert("RGBA"))[..., 3]


def _palette_mode(image: "Image") -> str:
    return image.palette.mode if image.palette is not None else ""
