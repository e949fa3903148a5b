"""Images with one label each: class folders, Parquet splits, torchvision's sets.

A data reference is one of

    DIR                        a folder a class, or with train-*, val-* and test-*.parquet (columns image and label)
    DIR?classes=1000           how many classes there are, where the files at hand do not show them all
    DIR?bits=12                of 16-bit images as many bits are used; by default as the largest value needs
    DIR?val=0.2                where the data has no val split: the share of train that is held out (default 0.1;
                               0 trains on all, and needs keep=last in the recipe)
    torchvision:CIFAR10?root=DIR&download=true        likewise CIFAR100, SVHN, ImageFolder; nothing is downloaded
                               unless download=true is said

Class folders may be divided: DIR/train/CLASS/..., DIR/val/CLASS/..., DIR/test/CLASS/..., in the spellings of splits.py.
DIR?divided=false: folders called so are classes.

A network sees every picture as a square of the recipe's size S. The short side becomes 8/7 S (S, where it is no longer
than that). Then the middle S x S is cut out. A picture of S x S is taken as it is.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.train.data.check import FileCheck
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.labelled_sources import LabelSource, Part
from leanconv.train.data.samples import CACHE_BYTES
from leanconv.train.data.splits import same_name

# Limits (side of the first picture, bytes of all) of a set that is decoded once, into one tensor.
SMALL_SIDE = 96
MEMORY_BYTES = 2 * 2**30
# Pixels of a picture that is scaled before its middle is cut out: 50 MB as stored, some seconds of a core.
MOST_SCALED = 1 << 24
VAL_SHARE = 0.1
MAX_CLASSES = 1_000_000


class Picture(NamedTuple):
    """One image: uint8 `3 H W`, its class, and its name. Read-only."""

    image: Tensor
    label: int
    name: str


class Labelled(Dataset[Picture]):
    """The labelled images of one split.

    Attributes:
        classes: names, in the order of the network's outputs.
        size: side of the squares that networks see, in pixels.
        note: what a user should know of how the split came about; may be empty.
        labels: int64 `N`.
        ignores: false: every picture has a class.
        images: uint8 `N 3 S S` after `check()`, of a set small enough to be kept so; else None.
    """

    ignores: ClassVar[bool] = False

    def __init__(
        self, source: LabelSource, classes: Sequence[str], size: int, note: str = "", reader: ImageReader | None = None
    ) -> None:
        self.source, self.classes, self.size, self.note = source, tuple(classes), size, note
        self.reader = reader or ImageReader()
        self.labels = torch.tensor(list(source.labels), dtype=torch.int64)
        self.images: Tensor | None = None
        self._cache: dict[int, Tensor] = {}
        self._room = CACHE_BYTES
        self._unread = ""

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, index: int) -> Picture:
        """The image; in a small set, the square that a network takes."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        index %= len(self)
        return Picture(self._pixels(index), int(self.labels[index]), self.source.names[index])

    def square(self, index: int) -> Tensor:
        """The square that a network takes in evaluation: uint8 `3 S S`."""
        picture = self._pixels(index)
        judge_shape(picture.shape[1], picture.shape[2], self.size, self.source.names[index])
        return prepared(picture, self.size)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cache": {}, "_room": CACHE_BYTES}

    def as_classes(self, classes: Sequence[str]) -> "Labelled":
        """The same pictures with the numbers that a trained network gives these names. Raises BadInput for others."""
        if not classes or tuple(classes) == self.classes:
            return self
        place = {same_name(name): number for number, name in enumerate(classes)}
        if unknown := [name for name in self.classes if same_name(name) not in place]:
            raise BadInput(
                f"the data has {len(self.classes)} classes, of which the run does not know {unknown[0]!r}: "
                f"it was trained on {', '.join(list(classes)[:10])}"
            )
        self.labels = torch.tensor(
            [place[same_name(self.classes[label])] for label in self.labels.tolist()], dtype=torch.int64
        )
        self.classes = tuple(classes)
        return self

    def check(self, *, progress: bool = True) -> None:
        """Find bad files now rather than in the third epoch: read every header, decode every picture.

        What the memory limit holds is kept. A bar is drawn on a terminal. Raises BadInput, BadFiles for several.
        """
        if self.images is not None:
            return
        count, check = len(self), FileCheck(len(self), progress=progress)
        check.read_headers(self._size)
        self.reader.settle(progress=progress)
        first = next(iter(check.sizes.values()), (0, 0))
        squares = None
        if max(first) <= SMALL_SIDE and count * 3 * self.size**2 <= MEMORY_BYTES:
            squares = torch.empty(count, 3, self.size, self.size, dtype=torch.uint8)

        def decode(index: int) -> None:
            picture = self._pixels(index) if squares is None else self.source.read(index)
            if squares is not None:
                squares[index] = prepared(picture, self.size)

        check.decode(decode)
        self._unread = check.finish()
        self.images = squares

    def like(self, other: "Labelled") -> None:
        """Read files by the rules of another split of the same data."""
        self.reader.like(other.reader)

    @property
    def bits(self) -> int | None:
        """The bits in use per channel of its 16-bit images; None without 16-bit images."""
        return self.reader.bits

    def remarks(self) -> list[str]:
        """Remarks of `check`, one line each."""
        return [*self.reader.notes(), *filter(None, [self._unread])]

    def _size(self, index: int) -> tuple[int, int]:
        height, width = self.source.size(index)
        judge_shape(height, width, self.size, self.source.where(index))
        return height, width

    def _pixels(self, index: int) -> Tensor:
        if self.images is not None:
            return self.images[index]
        if index in self._cache:
            return self._cache[index]
        image = self.source.read(index)
        if image.numel() <= self._room:
            self._cache[index] = image
            self._room -= image.numel()
        else:
            self._room = 0
        return image


def prepared(image: Tensor, size: int) -> Tensor:
    """uint8 `3 H W` -> the square uint8 `3 S S` that a network sees (see the head of this file)."""
    h, w = image.shape[1:]
    if (h, w) == (size, size):
        return image
    with needs("torchvision", "train"):
        from torchvision.transforms.v2 import functional
    if (h, w) != (scaled := _scaled(h, w, size)):
        image = functional.resize(image, list(scaled), antialias=True)
    square: Tensor = functional.center_crop(image, [size, size])
    return square


def judge_shape(height: int, width: int, size: int, name: str) -> None:
    """Raise BadInput naming a picture so long and narrow that it would not fit in memory as `prepared` scales it."""
    rows, columns = _scaled(height, width, size)
    if rows * columns > max(MOST_SCALED, 4 * size**2):
        raise BadInput(
            f"{name}: {width}x{height} pixels would be {columns}x{rows} with a short side for squares of {size}; "
            "cut it into parts"
        )


def _scaled(height: int, width: int, size: int) -> tuple[int, int]:
    """The size of a picture whose middle square is seen."""
    short = min(height, width)
    target = round(size * 8 / 7) if short > size else size
    if short == target:
        return height, width
    return max(size, round(height * target / short)), max(size, round(width * target / short))


def held_out(source: LabelSource, share: float, classes: Sequence[str]) -> tuple[Part, Part, str]:
    """(train, val, note): of every class the pictures with the smallest hashes are held out, at least one."""
    if not share:
        return Part(source, range(len(source.names))), Part(source, []), ""
    by_class: dict[int, list[int]] = {}
    for place, label in enumerate(source.labels):
        by_class.setdefault(label, []).append(place)
    val: set[int] = set()
    for label, places in by_class.items():
        if len(places) < 2:
            raise BadInput(
                f"class {classes[label]} has one training image, of which none can be held out for validation: give a "
                "val split, or say ?val=0 and keep=last"
            )
        ranked = sorted(places, key=lambda place: _hash(f"{source.names[place]},{place}"))
        val.update(ranked[: max(1, min(len(places) - 1, round(share * len(places))))])
    train = [place for place in range(len(source.names)) if place not in val]
    note = f"there is no val split: {len(val)} of {len(source.names)} training images are held out for it, by a hash"
    return Part(source, train), Part(source, sorted(val)), note


def _hash(name: str) -> bytes:
    return hashlib.sha256(same_name(name).encode(errors="surrogateescape")).digest()


def check_labels(labels: Iterable[Any], classes: int, where: str) -> list[int]:
    """Whole numbers from 0 to classes - 1. Raises BadInput naming the first row that holds something else."""
    found = []
    for row, label in enumerate(labels):
        if isinstance(label, bool) or not isinstance(label, int):
            raise BadInput(f"{where} {row}: label {label!r}: a class is a whole number from 0 on, or a word")
        if not 0 <= label < classes:
            more = "; more: ?classes=N" if 0 < label < MAX_CLASSES else ""
            raise BadInput(f"{where} {row}: label {label}: the classes are 0 to {classes - 1}{more}")
        found.append(label)
    return found


def check_classes(classes: Sequence[str], where: object) -> None:
    """Raises BadInput for fewer than two classes."""
    if len(classes) < 2:
        names = ", ".join(classes) or "none"
        raise BadInput(f"{where}: classification needs at least two classes, found {len(classes)}: {names}")


def share_of(text: str, ref: str) -> float:
    """The option `val=`. Raises BadInput unless it is from 0 to below 1."""
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share < 1:
        raise BadInput(f"data {ref!r}: val={text}: the share of train that is held out, from 0 to below 1")
    return share
