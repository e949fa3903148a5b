"""Mask files: from pixels to class indices.

A file can encode classes as numbers, palette colours and transparency at once. The rule is what a viewer shows. A file
with a choice left is refused. The error names the option of the data reference that resolves it.

- Grey, whether stored as numbers or as a palette of greys in any order: the greys are the classes 0, 1, 2, ...; for two
  classes also 0 and 255 (0 and 65535; a 1-bit file). `threshold` takes a grey of at least that as class 1.
- A palette with colours (PASCAL VOC, what `predict` writes): its indices are the classes, as long as no colour
  contradicts: black is the background, two indices have two colours, and every mask of the data has the same colours.
  `palette=index` takes the indices whatever is shown.
- Any kind, with `colors`: the colour shown is the class. Without it, colours are refused.
- Transparency must say the same again: transparent where the background is, and nowhere else; or be named in `colors`.
- `ignore`: pixels of that number (with `colors`: of that colour) are not judged; in memory they are IGNORE.
- JPEG, JPEG 2000, AVIF and lossy WebP change values: they take `threshold`, or must hold exact black and white.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.colours import TRANSPARENT, ColourMap, written
from leanconv.train.data.decode import Decoded, Header, Source, decode, read_header
from leanconv.train.data.palettes import Palette, looked_up, values_of
from leanconv.train.data.transparency import Unclear, check_transparency, refuse_half_transparent

if TYPE_CHECKING:
    from PIL.Image import Image

# Excluded pixels of a mask in memory; the last class is 254.
IGNORE = 255

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_WHITE = (1, 255, 65535)
_TINGE = 16  # the largest difference between a grey's channels after lossy compression


class MaskReader:
    """Reads the masks of one data set, by the same rule: see the head of this file.

    Attributes:
        origin: where the number of classes stands if the user has not typed it; may be empty.
        seen: the classes that some mask had.
    """

    def __init__(
        self,
        classes: int = 2,
        threshold: int | None = None,
        *,
        colours: ColourMap | None = None,
        ignore: int | None = None,
        by_index: bool = False,
        origin: str = "",
    ) -> None:
        self.classes, self.threshold, self.ignore, self.by_index = classes, threshold, ignore, by_index
        self.colours, self.origin = colours, origin
        self.seen: set[int] = set()
        self._shown: dict[int, tuple[int, str]] = {}  # palette index -> its colour, and a mask that has it

    def header(self, source: Source, name: str) -> Header:
        """The validated header. Raises BadInput naming the file if it holds no mask."""
        header = read_header(source, name)
        self._judge(header, name)
        return header

    def read(self, source: Source, name: str, as_class: int = 1) -> Tensor:
        """The mask as uint8 class indices `H W`, IGNORE for excluded pixels.

        `as_class`: the index of the defects in a mask of two classes.
        Raises: BadInput naming the file and its values where they do not say the classes.
        """
        mask = decode(source, name, "mask")
        self._judge(mask.header, name)
        try:
            if self.colours is not None:
                found = self._by_colour(mask, self.colours)
            elif mask.image.mode in ("P", "PA"):
                found = self._by_palette(Palette(mask.image), name)
            else:
                found = self._by_grey(_greys(mask), mask.header.lossy)
            if not self._says_transparency(mask):
                check_transparency(mask, background=found == 0, judged=found != IGNORE)
        except Unclear as error:
            raise BadInput(f"{name}: {error}") from None
        if as_class != 1:
            found[found == 1] = as_class
        self.seen.update(values_of(found))
        return torch.from_numpy(found)

    def like(self, other: "MaskReader") -> None:
        """Masks of another split: their palettes must agree with these."""
        self._shown = other._shown

    def _says_transparency(self, mask: Decoded) -> bool:
        """Whether an option decides the class of transparent pixels."""
        if self.colours is not None:
            return TRANSPARENT in (*self.colours.colours, self.ignore)
        return self.by_index and mask.image.mode in ("P", "PA")

    def _judge(self, header: Header, name: str) -> None:
        if header.mode not in _MODES:
            raise BadInput(f"{name}: {header.kind}; save the mask with one channel of 8 bits")
        if header.lossy and (self.classes > 2 or self.colours is not None):
            raise BadInput(f"{name}: lossy formats change values; save masks of classes as PNG")

    def _by_grey(self, greys: np.ndarray, lossy: bool) -> np.ndarray:
        """Classes from grey values."""
        values = values_of(greys)
        if lossy and self.threshold is None and not set(values) <= {0, 255}:
            raise Unclear(f"lossy formats change values ({_some(values)}); save it as PNG, or say threshold=128")
        if self.threshold is not None:
            self._judge_threshold(values[-1], wide=greys.dtype != np.uint8)
        if (classes := self._classes_of_greys(values)) is None:
            raise Unclear(self._no_classes(values))
        return looked_up(greys, values, classes)

    def _by_palette(self, palette: Palette, name: str) -> np.ndarray:
        """Classes from a palette image: by grey if colourless, else by index."""
        if self.by_index:
            return self._by_index(palette)
        if unknown := [index for index in palette.unknown if index != self.ignore]:
            raise Unclear(
                f"its palette has no colour for {_some(unknown)}; say palette=index if the indices are the classes"
            )
        greys = palette.greys
        if self.threshold is not None:
            if greys is None:
                raise Unclear(f"its palette has colours, and threshold={self.threshold} is for greys")
            self._judge_threshold(255, wide=False)
        by_grey = None if greys is None else self._classes_of_greys(greys)
        by_index = self._classes_of_numbers(palette.used)
        if by_grey is not None and (palette.colourless or self.threshold is not None or by_index is None):
            return looked_up(palette.indices, palette.used, by_grey)
        if greys is not None and palette.colourless:
            hint = "; or palette=index, if its palette indices are the classes" if by_index else ""
            raise Unclear(self._no_classes(sorted(greys)) + hint)
        found = self._by_index(palette)
        says = palette.contradiction(self.ignore)
        if by_grey not in (None, by_index):
            says = f"its palette shows the indices {_some(palette.used)} as the greys {_some(greys or [])}"
        if says := says or self._other_colours(palette.used, palette.colours, name):
            raise Unclear(
                f"{says}; say palette=index if the indices are the classes, or colors={palette.in_classes_order()} "
                "with the colours in the order of the classes"
            )
        return found

    def _by_index(self, palette: Palette) -> np.ndarray:
        classes = self._classes_of_numbers(palette.used)
        if classes is None:
            raise Unclear(self._no_classes(palette.used, palette=True))
        return looked_up(palette.indices, palette.used, classes)

    def _other_colours(self, indices: Sequence[int], colours: Sequence[int], name: str) -> str:
        """Where other masks of the data show an index in another colour, or the colour at another index, in words."""
        for index, colour in zip(indices, colours, strict=True):
            if index == self.ignore:
                continue
            known, where = self._shown.setdefault(index, (colour, name))
            if known != colour:
                return f"shows index {index} as {written(colour)}, {where} as {written(known)}"
            for other, (known, where) in list(self._shown.items()):
                if known == colour and other != index:
                    return f"shows {written(colour)} as index {index}, {where} as {other}"
        return ""

    def _by_colour(self, mask: Decoded, colours: ColourMap) -> np.ndarray:
        """Classes from the displayed colours."""
        if (mask.deep is not None and (mask.deep.ndim == 2 or (mask.deep % 257).any())) or mask.image.mode in (
            "I",
            "F",
        ):
            raise Unclear("colors= is for 8 bits a channel, the mask has more")
        bands = np.asarray(mask.image.convert("RGBA"))
        shown = bands[..., 0].astype(np.uint32) << 16 | bands[..., 1].astype(np.uint32) << 8 | bands[..., 2]
        meaning = dict(zip(colours.colours, colours.classes, strict=True))
        if self.ignore is not None:
            meaning[self.ignore] = IGNORE
        if TRANSPARENT in meaning:
            refuse_half_transparent(bands[..., 3])
            shown[bands[..., 3] == 0] = TRANSPARENT
        keys = np.array(sorted(meaning), np.uint32)
        places = np.searchsorted(keys, shown).clip(max=len(keys) - 1)
        if (unknown := keys[places] != shown).any():
            row, column = np.unravel_index(int(unknown.argmax()), unknown.shape)
            raise Unclear(
                f"{int(unknown.sum())} of {unknown.size} pixels have a colour of no class, the first "
                f"{written(int(shown[row, column]))} at column {column}, row {row}; known: "
                f"{', '.join(written(int(key)) for key in keys[:8])}{', ...' if len(keys) > 8 else ''}"
            )
        return np.array([meaning[int(key)] for key in keys], np.uint8)[places]

    def _classes_of_greys(self, values: Sequence[int]) -> list[int] | None:
        """The class of each grey; None where some have none."""
        if self.threshold is not None:
            return [IGNORE if v == self.ignore else int(v >= self.threshold) for v in values]
        bright = set(values) - {0, self.ignore}
        if self.classes == 2 and len(bright) < 2 and bright <= set(_WHITE):
            return [IGNORE if v == self.ignore else int(v > 0) for v in values]
        return self._classes_of_numbers(values)

    def _classes_of_numbers(self, values: Sequence[int]) -> list[int] | None:
        """The same for numbers that are class indices themselves."""
        if any(not 0 <= value < self.classes and value != self.ignore for value in values):
            return None
        return [IGNORE if value == self.ignore else value for value in values]

    def _judge_threshold(self, largest: int, *, wide: bool) -> None:
        """Raise where the threshold and the mask (16 bits where `wide`) are of different scales."""
        if self.threshold is not None and self.threshold > 255 and not wide:
            raise Unclear(f"threshold={self.threshold} is for 16 bits, the mask has 8")
        if self.threshold is not None and self.threshold <= 255 < largest:
            raise Unclear(
                f"the mask has 16 bits, up to {largest}, and threshold={self.threshold} is for 8; say one above 255, "
                "or save it with 8 bits"
            )

    def _no_classes(self, values: Sequence[int], *, palette: bool = False) -> str:
        odd = [value for value in values if not 0 <= value < self.classes and value != self.ignore]
        hint = f"; or ignore={odd[0]}, if that marks what is not judged" if len(odd) == 1 and odd[0] > 0 else ""
        if self.classes == 2 and not palette:
            return (
                f"non-binary mask, it holds {len(values)} values ({_some(values)}); write 0 and 255, or say "
                f"threshold=128 for soft edges, or classes=N for class indices{hint}"
            )
        what, top = "the palette indices " if palette else "", self.classes - 1
        said = f"classes={self.classes}{f' by {self.origin}' if self.origin else ''}"
        return f"the mask holds {what}{_some(values)}; {said} takes the values 0 to {top}{hint}"


def read_mask(source: Source, name: str, classes: int = 2, threshold: int | None = None) -> Tensor:
    """One mask as uint8 class indices `H W`, without any other option of a data reference."""
    return MaskReader(classes, threshold).read(source, name)


def _greys(mask: Decoded) -> np.ndarray:
    """One number per pixel, `H W`, of a mask without a palette."""
    image = mask.image
    if mask.deep is not None:
        if mask.deep.ndim == 2 or mask.header.mode == "LA":
            return mask.deep if mask.deep.ndim == 2 else mask.deep[..., 0]
        if (mask.deep % 257).any():
            raise Unclear("16 bits a channel in colour; save the mask with one channel of 8 bits")
    if image.mode == "1":
        return np.asarray(image.convert("L"))
    bands = np.asarray(image)
    if image.mode == "F":
        if not (np.isfinite(bands).all() and (bands == np.floor(bands)).all() and np.abs(bands).max() < 2**31):
            raise Unclear("numbers that are no whole ones; save the mask with one channel of 8 bits")
        return bands.astype(np.int64)
    if bands.ndim == 2:
        return bands
    if image.mode == "LA" or (bands[..., :3] == bands[..., :1]).all():
        return bands[..., 0]
    if mask.header.lossy and np.ptp(bands[..., :3].astype(np.int16), axis=2).max() <= _TINGE:
        return np.asarray(image.convert("L"))
    raise Unclear(f"the mask has colours ({_colours(image)}); {_SAY_COLOURS}")


_SAY_COLOURS = "say colors=000000,RRGGBB,... in the order of the classes, or save it as a palette PNG of class indices"


def _colours(image: "Image") -> str:
    """The colours of a picture for a message."""
    found: Any = image.convert("RGB").getcolors(256)
    if found is None:
        return "more than 256"
    return _some([written(r << 16 | g << 8 | b) for _, (r, g, b) in sorted(found, reverse=True)])


def _some(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values[:6]) + (", ..." if len(values) > 6 else "")
