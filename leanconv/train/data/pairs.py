"""An image and its mask, read together."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.decode import Source, read_header
from leanconv.train.data.image_reader import ImageReader, listing
from leanconv.train.data.masks import MaskReader

Size = tuple[int, ...]


class PairSource(Protocol):
    """The images and masks of one split, by number."""

    names: Sequence[str]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width from the headers alone. Raises BadInput where image and mask disagree."""

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The decoded image and mask. Raises BadInput."""


class PairReader:
    """Reads the images of one data set, and its masks, each by one rule."""

    def __init__(self, images: ImageReader, masks: MaskReader) -> None:
        self.images, self.masks = images, masks
        self._turned: dict[str, None] = {}

    def sizes(self, image: Source, mask: Source, name: str, mask_name: str) -> tuple[int, int]:
        """Height and width by the headers. Raises BadInput where these show that the pair cannot be used."""
        header, other = self.images.header(image, name), self.masks.header(mask, mask_name)
        if header.size != other.size:  # a PNG's tag may follow its pixels: only decoding finds it
            header, other = read_header(image, name, whole=True), read_header(mask, mask_name, whole=True)
        if header.size != other.size:
            turned = header.orientation != 1 and header.size == other.size[::-1]
            raise _other_size(header.size, other.size, mask_name, turned=turned)
        if header.orientation != other.orientation:
            self._turned[mask_name] = None
        return header.size

    def read(
        self, image: Source, mask: Source, name: str, mask_name: str, *, as_class: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The decoded pair. Raises BadInput naming the file that cannot be used."""
        pixels, classes = self.images.read(image, name), self.masks.read(mask, mask_name, as_class)
        if pixels.shape[1:] != classes.shape:
            raise _other_size(pixels.shape[1:], classes.shape, mask_name)
        return pixels, classes

    def like(self, other: "PairReader") -> None:
        """Read as another split's reader does."""
        self.images.like(other.images)
        self.masks.like(other.masks)

    def notes(self) -> list[str]:
        """Remarks on how the files were read, one line each."""
        notes = self.images.notes()
        if self._turned:
            count = f"{len(self._turned)} mask{'s' if len(self._turned) > 1 else ''}, {listing(self._turned)}"
            notes.append(f"a mask and its image have other EXIF orientations, each is turned by its own tag: {count}")
        return notes


def _other_size(image: Size, mask: Size, name: str, *, turned: bool = False) -> BadInput:
    hint = "turn it as the image's EXIF tag does, or remove that tag" if turned else "give the mask the image's size"
    return BadInput(
        f"{name}: the mask is {mask[1]}x{mask[0]} (width x height), its image {image[1]}x{image[0]}; {hint}"
    )
