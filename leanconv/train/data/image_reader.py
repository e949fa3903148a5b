"""Images as networks of this project take them: uint8 `3 H W`, from files and Parquet, in every command.

Grey becomes three equal channels, alpha is dropped, CMYK is converted by PIL's formula without colour profiles. Values
of 16 bits are scaled by the range that the data uses, the same for every image of it: value · 255 / (2^bits - 1), where
`bits` is the least of 8, 10, 12, 14 and 16 that holds the largest value of all splits. A 12-bit camera's 4095 is white.
A run writes its `bits` down, and whatever reads images for that run takes them.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.progress import tracked
from leanconv.train.data.decode import Header, Source, decode, read_header

BITS = (8, 10, 12, 14, 16)  # of cameras

_READ = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK")

Everything = Callable[[], Iterable[tuple[Source, str]]]


class ImageReader:
    """Reads the images of one data set, by the same rule, and records conversions.

    Attributes:
        bits: that a channel of 16-bit images uses; None: not known yet.
        everything: gives (file or bytes, name) of all images of the data; None: each image has a range of its own.
    """

    def __init__(self, bits: int | None = None, everything: Everything | None = None) -> None:
        self.bits, self.everything = bits, everything
        self._inks, self._deep, self._brighter = dict[str, None](), dict[str, None](), dict[str, None]()

    def header(self, source: Source, name: str) -> Header:
        """The validated header. Raises BadInput naming the file if networks here cannot take the image."""
        header = read_header(source, name)
        self._judge(header, name)
        return header

    def read(self, source: Source, name: str) -> Tensor:
        """The image as uint8 `3 H W`. Raises BadInput naming the file if it is no image."""
        picture = decode(source, name)
        self._judge(picture.header, name)
        if picture.deep is not None:
            return self._scaled(picture.deep, name)
        image = picture.image
        if "transparency" in image.info:  # PIL would change its colours, or warn
            image = image.convert("RGBA")
        image = image if image.mode == "RGB" else image.convert("RGB")
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())  # H W 3 -> 3 H W

    def settle(self, *, progress: bool = False) -> None:
        """Find the range of 16-bit images, if the headers so far include any."""
        if self._deep and self.bits is None and self.everything is not None:
            self.bits = bits_of(tracked(self.everything(), "16-bit images", progress=progress))

    def like(self, other: "ImageReader") -> None:
        """Read as another split's reader does: in its range."""
        self.bits = self.bits or other.bits

    def notes(self) -> list[str]:
        """The conversions, one line each."""
        notes = []
        if self._inks:
            notes.append(f"CMYK converted to RGB: {_counted(self._inks)}")
        if self._deep and self.bits:
            notes.append(f"16 bits a channel, scaled by the {self.bits} that are used: {_counted(self._deep)}")
        if self._brighter and self.bits:
            notes.append(
                f"brighter than the {2**self.bits - 1} of {self.bits} bits, cut off: {_counted(self._brighter)}"
            )
        return notes

    def _judge(self, header: Header, name: str) -> None:
        if not header.deep and header.mode not in _READ:
            raise BadInput(f"{name}: {header.kind}; save it as grey or RGB with 8 or 16 bits a channel")
        if header.mode == "CMYK":
            self._inks[name] = None
        if header.deep:
            self._deep[name] = None

    def _scaled(self, deep: np.ndarray, name: str) -> Tensor:
        """uint16 `H W` or `H W C` -> uint8 `3 H W`."""
        self.settle()
        colours = _without_alpha(deep)  # H W 1 or H W 3
        largest = int(colours.max())
        top = 2 ** (self.bits or _bits(largest)) - 1
        if largest > top:
            self._brighter[name] = None
        table = (np.minimum(np.arange(1 << 16), top) * 255 // top).astype(np.uint8)
        return torch.from_numpy(table[colours]).permute(2, 0, 1).expand(3, -1, -1).contiguous()


def read_image(source: Source, name: str, bits: int | None = None) -> Tensor:
    """One picture as uint8 `3 H W`; of 16-bit values as many `bits` are used, by default as its largest one needs."""
    return ImageReader(bits).read(source, name)


def bits_of(images: Iterable[tuple[Source, str]]) -> int:
    """The bits that a channel uses over all 16-bit images among these; what cannot be read is judged elsewhere."""
    largest = 0
    for source, name in images:
        try:
            if read_header(source, name).deep and (deep := decode(source, name).deep) is not None:
                largest = max(largest, int(_without_alpha(deep).max()))
        except BadInput:
            continue
    return _bits(largest)


def listing(names: Iterable[str], at_most: int = 3) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _bits(largest: int) -> int:
    return next(bits for bits in BITS if largest < 2**bits)


def _without_alpha(deep: np.ndarray) -> np.ndarray:
    """`H W` or `H W C` -> the colours alone, `H W 1` or `H W 3`."""
    if deep.ndim == 2:
        return deep[..., None]
    return deep[..., : 3 if deep.shape[2] > 2 else 1]


def _counted(names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)} image{'s' if len(names) > 1 else ''}, {listing(names)}"
