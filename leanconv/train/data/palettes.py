"""Palette images as masks: an index, and the colour that a viewer shows for it."""

from typing import TYPE_CHECKING

import numpy as np

from leanconv.train.data.colours import written

if TYPE_CHECKING:
    from PIL.Image import Image


class Palette:
    """The palette of one mask.

    Attributes:
        indices: uint8 `H W`.
        used: the indices that occur, ascending.
        colours: `0xRRGGBB` of each of these; black where the palette has none.
        unknown: the used indices without a colour in the palette.
        colourless: the whole palette is grey, used or not: tools that shrink files store grey images so.
    """

    def __init__(self, image: "Image") -> None:
        self.indices = np.asarray(image) if image.mode == "P" else np.asarray(image)[..., 0]
        entries = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        table = np.zeros((256, 3), np.uint32)  # viewers show an index beyond the palette as black
        table[: len(entries)] = entries
        self.used = values_of(self.indices)
        self.colours = [int(r) << 16 | int(g) << 8 | int(b) for r, g, b in table[self.used]]
        self.unknown = [index for index in self.used if index >= len(entries)]
        self.colourless = bool((entries == entries[:, :1]).all())

    @property
    def greys(self) -> list[int] | None:
        """The greys of the used indices; None if one has a colour."""
        greys = [colour & 255 for colour in self.colours]
        return greys if all(grey * 0x010101 == c for grey, c in zip(greys, self.colours, strict=True)) else None

    def contradiction(self, ignore: int | None) -> str:
        """Where the colours contradict the indices, in words; empty if they agree."""
        shown: dict[int, int] = {}
        for index, colour in zip(self.used, self.colours, strict=True):
            if index == ignore:
                continue
            if colour == 0 and index:
                return f"index {index} is shown black, as the background is"
            if colour in shown:
                return f"indices {shown[colour]} and {index} are shown in one colour, {written(colour)}"
            shown[colour] = index
        return ""

    def in_classes_order(self) -> str:
        """The colours in the notation of the option `colors`, black first."""
        return ",".join(written(colour) for colour in sorted(self.colours, key=lambda colour: colour != 0))


def values_of(codes: np.ndarray) -> list[int]:
    """The numbers that occur, ascending."""
    if codes.dtype not in (np.uint8, np.uint16):
        return [int(value) for value in np.unique(codes)]
    occurs = np.zeros(np.iinfo(codes.dtype).max + 1, bool)
    occurs[codes] = True  # half the time of sorting or counting 12 megapixels
    found: list[int] = occurs.nonzero()[0].tolist()
    return found


def looked_up(codes: np.ndarray, values: list[int], meanings: list[int]) -> np.ndarray:
    """`meanings` of the `values` (ascending) that `codes` holds, uint8 in the shape of `codes`."""
    if codes.dtype in (np.uint8, np.uint16):
        table = np.zeros(values[-1] + 1, np.uint8)
        table[values] = meanings
        return table[codes]
    return np.asarray(meanings, np.uint8)[np.searchsorted(values, codes)]
