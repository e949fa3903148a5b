"""Masks of one class each: masks/scratch/0001.png, masks/pit/0001.png, black and white, of one image.

The folders name the classes; the background is none of them. An image may lack the mask of a class that it does not
show, but not all of them. Where two classes share a pixel, the later one has it. A pixel that any mask leaves out
(`ignore=`) is not judged.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.folders import Masks, layout_of
from leanconv.train.data.image_files import folders_in, holds_images, images_in
from leanconv.train.data.masks import IGNORE
from leanconv.train.data.pairs import PairReader
from leanconv.train.data.splits import split_of


class ClassMaskSource:
    """Image files, each with the masks of some classes."""

    def __init__(self, pairs: Sequence[tuple[Path, Masks]], reader: PairReader, classes: Sequence[str]) -> None:
        self.reader, places = reader, {name: place for place, name in enumerate(classes)}
        self.files = [
            (image, sorted((places[name], path) for name, path in masks.items()))
            for image, masks in pairs
            if isinstance(masks, dict)
        ]
        self.names: Sequence[str] = [image.stem for image, _ in self.files]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width by the headers."""
        image, masks = self.files[index]
        found = {self.reader.sizes(image, mask, str(image), str(mask)) for _, mask in masks}
        return found.pop()  # of several the reader raises

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Decode the image and its masks, and put these together."""
        image, masks = self.files[index]
        pixels, found = self.reader.read(image, masks[0][1], str(image), str(masks[0][1]), as_class=masks[0][0])
        for place, mask in masks[1:]:
            other = self.reader.masks.read(mask, str(mask), place)
            if other.shape != found.shape:
                raise BadInput(f"{mask}: has another size than {masks[0][1]}; give all masks the image's size")
            found = torch.where((other > 0) & (found != IGNORE), other, found)
        return pixels, found


def mask_folders(root: Path, *, divided: bool = True) -> list[str]:
    """The names of the folders of masks in all splits, sorted; empty where masks of all classes are one file."""
    layout = layout_of(root, divided=divided)
    found: set[str] = set()
    for _, masks in layout.splits.values() or filter(None, [layout.whole]):
        if masks.is_dir() and not images_in(masks).images:
            folders = [folder for folder in folders_in(masks) if not (divided and split_of(folder.name))]
            found.update(folder.name for folder in folders if holds_images(folder))
    return sorted(found)
