"""Photographs as networks of this project take them: uint8 `3 H W`, from files and from Parquet, in every command."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.decode import SIXTEEN_BIT, Source, channels, decoded


def read_image(source: Source, name: str) -> Tensor:
    """The picture as uint8 `3 H W`.

    Grey becomes three equal channels, alpha is dropped, 16-bit grey is divided by 257 (a fixed scale: images stay
    comparable). Raises BadInput naming the file for anything that is no such picture.
    """
    pixels = decoded(source, name, "image")
    if pixels.mode in SIXTEEN_BIT:
        grey = (np.asarray(pixels).astype(np.uint32) // 257).astype(np.uint8)
        return torch.from_numpy(grey).expand(3, -1, -1).contiguous()
    if pixels.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX"):
        raise BadInput(f"{name}: {channels(pixels)}; save it as grey or RGB with 8 bits a channel")
    rgb = np.array(pixels.convert("RGB"))  # H W 3
    return torch.from_numpy(rgb).permute(2, 0, 1).contiguous()  # H W 3 -> 3 H W


def listing(names: Iterable[str], at_most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more
