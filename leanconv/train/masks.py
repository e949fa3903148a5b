"""What the pixels of a mask file mean: class indices."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.decode import SIXTEEN_BIT, Source, channels, decoded

if TYPE_CHECKING:
    from PIL.Image import Image


def read_mask(source: Source, name: str, classes: int = 2, threshold: int | None = None) -> Tensor:
    """The mask as uint8 class indices `H W`.

    Two classes: the file holds 0 and 1, or 0 and 255 (or is 1-bit); with `threshold`, a grey of at least that is 1.
    More classes: the file's values, or palette indices, are the class indices.
    Raises: BadInput naming the file and its values where they are neither.
    """
    values = _grey(decoded(source, name, "mask"), name, classes)
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


def _grey(mask: "Image", name: str, classes: int) -> np.ndarray:
    """One number per pixel, `H W`."""
    if mask.mode == "P":
        return _palette(mask, classes)
    if mask.mode == "1":
        return np.asarray(mask.convert("L"))
    if mask.mode in ("L", *SIXTEEN_BIT):
        return np.asarray(mask)
    if mask.mode == "LA":
        return np.asarray(mask)[..., 0]
    if mask.mode in ("RGB", "RGBA"):
        colours = np.asarray(mask)[..., :3]
        if (colours[..., :1] == colours).all():
            return colours[..., 0]
        raise BadInput(f"{name}: the mask has colours; save it with one channel, or as a palette PNG of class indices")
    raise BadInput(f"{name}: {channels(mask)}; save the mask with one channel of 8 bits")


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
