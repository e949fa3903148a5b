"""Images and their masks: from a folder, from Parquet splits, or generated on the fly.

A data reference is one of

    DIR                        with images/ and masks/ (same stem), or with train-*, val-* and test-*.parquet
    DIR?classes=4              masks of class indices 0 ... 3; or their names: classes=background,scratch,particle, or
                               a file of names; classes.txt in DIR is one (see classes.py)
    DIR?label=kind             Parquet: black and white masks, whose defects are of the class in the column `kind`
    DIR?threshold=128          soft masks: a grey of at least that is a defect
    DIR?colors=000000,ff0000   masks of colours: RRGGBB of each class, or a file of them (see colours.py)
    DIR?ignore=255             mask values (with colors: a colour) that are neither learnt nor scored
    DIR?palette=index          palette masks whose indices are the classes, whatever their colours (see masks.py)
    DIR?bits=12                bits in use of 16-bit images; by default as many as the largest value needs
    DIR?side=256               images reduced to at most that many pixels on their longer side, and their masks
    synthetic:wafer?size=128&count=400&seed=0

DIR/masks/scratch/, DIR/masks/pit/ and so on hold black and white masks of one class each (see class_masks.py).
A folder may be divided: DIR/train/images, DIR/train/masks, or DIR/images/train, DIR/masks/train; likewise val and test,
in the spellings of splits.py. DIR?divided=false: folders called so are no splits.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from leanconv.errors import BadInput, UnknownName
from leanconv.registry import nearest
from leanconv.train.data.check import FileCheck
from leanconv.train.data.class_masks import ClassMaskSource, mask_folders
from leanconv.train.data.classes import FILE, class_names
from leanconv.train.data.colours import ColourMap, colour_of, read_colours
from leanconv.train.data.folders import FolderSource, folder_pairs, images_of_all
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.masks import MaskReader
from leanconv.train.data.pairs import PairReader, PairSource
from leanconv.train.data.reduce import ReducedSource
from leanconv.train.data.references import bits_option, number, parse, side_of
from leanconv.train.data.splits import SPLITS, holds_parquet, option_divided, parquet_files

# The most bytes of decoded samples in memory, in each worker process of a DataLoader.
CACHE_BYTES = 512 * 2**20
_OPTIONS = ("classes", "label", "threshold", "colors", "ignore", "palette", "bits", "side", "divided")


class Sample(NamedTuple):
    """One image: uint8 `3 H W`, its mask of class indices uint8 `H W`, and its name. Read-only."""

    image: Tensor
    mask: Tensor
    name: str


class Samples(Dataset[Sample]):
    """The samples of one split.

    Attributes:
        classes: names; the first is the background.
        note: a remark on how the split was chosen; may be empty.
        reader: of its files; None without files.
    """

    def __init__(
        self, source: PairSource, classes: Sequence[str], note: str = "", reader: PairReader | None = None
    ) -> None:
        self.source, self.classes, self.note, self.reader = source, tuple(classes), note, reader
        self._cache: dict[int, Sample] = {}
        self._room = CACHE_BYTES
        self._unread = ""

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        if index in self._cache:
            return self._cache[index]
        sample = Sample(*self.source.read(index), self.name(index))
        if (needed := sample.image.numel() + sample.mask.numel()) <= self._room:
            self._cache[index] = sample
            self._room -= needed
        return sample

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_cache": {}, "_room": CACHE_BYTES}

    def name(self, index: int) -> str:
        """The sample's name: the file's stem, the row's name, or a number."""
        return self.source.names[index]

    def check(self, *, progress: bool = True) -> None:
        """Find bad files now rather than in the third epoch: read every header, decode every image.

        Keeps samples up to the memory limit. Draws a bar on a terminal. Raises BadInput, BadFiles for several.
        """
        check = FileCheck(len(self), progress=progress)
        check.read_headers(self.source.sizes)
        if self.reader is not None:
            self.reader.images.settle(progress=progress)
        check.decode(self.__getitem__)
        self._unread = check.finish()

    def like(self, other: "Samples") -> None:
        """Read files by the rules of another split of the same data."""
        if self.reader is not None and other.reader is not None:
            self.reader.like(other.reader)

    @property
    def ignores(self) -> bool:
        """Whether its masks exclude pixels."""
        return self.reader is not None and self.reader.masks.ignore is not None

    @property
    def bits(self) -> int | None:
        """The bits in use per channel of its 16-bit images; None without 16-bit images."""
        return self.reader.images.bits if self.reader is not None else None

    def remarks(self) -> list[str]:
        """Remarks of `check`, one line each."""
        read = self.reader.notes() if self.reader is not None else []
        return [*read, *filter(None, [self._unread])]

    def unseen(self) -> list[str]:
        """The classes without a pixel in any decoded mask."""
        if self.reader is None:
            return []
        return [name for place, name in enumerate(self.classes) if place not in self.reader.masks.seen]


def open_data(
    ref: str,
    split: str,
    *,
    classes: int | Sequence[str] | None = None,
    threshold: int | None = None,
    bits: int | None = None,
) -> Samples:
    """The samples that a data reference names (see the head of this file), of one split: train, val or test.

    `threshold` and `bits`: defaults of the reference's options of the same name. `classes`: the recipe's or the run's
    classes, names or their number; the reference may say the same again, or leave it out.
    Decodes nothing yet; `Samples.check()` does. Raises BadInput; UnknownName for an unknown split or option.
    """
    if split not in SPLITS:
        raise UnknownName(f"split {split!r}{nearest(split, list(SPLITS))}: one of {', '.join(SPLITS)}")
    place, options = parse(ref)
    if place.startswith("synthetic:"):
        return _synthetic(ref, place, options, split, classes)
    for key in options:
        if key not in _OPTIONS:
            raise UnknownName(
                f"data {ref!r}: unknown option {key!r}{nearest(key, list(_OPTIONS))}; known: {', '.join(_OPTIONS)}"
            )
    root = Path(os.path.expanduser(place))
    if not os.path.isdir(root):
        raise BadInput(
            f"data {place!r}: no such folder; give a folder with images/ and masks/, one with Parquet splits, "
            "or synthetic:wafer"
        )
    bits, side = bits_option(ref, options) or bits, side_of(ref)
    source: PairSource
    divided = option_divided(ref, options, folders=not (parquet := holds_parquet(root)))
    if parquet:
        from leanconv.train.data.parquet import ParquetSource, image_rows, label_names

        label = options.get("label", "")
        apart = label_names(root, label) if label else ()
        names, masks = _mask_reader(ref, options, classes, threshold, root, apart)
        reader = PairReader(ImageReader(bits, partial(image_rows, root)), masks)
        source, note = ParquetSource(parquet_files(root, split, needed=True), reader, label, names), ""
    else:
        if "label" in options:
            raise BadInput(f"data {ref!r}: label= names a column of Parquet files, and there are none: leave it out")
        apart = mask_folders(root, divided=divided)
        names, masks = _mask_reader(ref, options, classes, threshold, root, apart)
        reader = PairReader(ImageReader(bits, partial(images_of_all, root, divided=divided)), masks)
        pairs, note = folder_pairs(root, split, divided=divided, classes=apart)
        source = ClassMaskSource(pairs, reader, names) if apart else FolderSource(pairs, reader)
    return Samples(source if side is None else ReducedSource(source, side), names, note, reader)


def _mask_reader(
    ref: str,
    options: dict[str, str],
    classes: int | Sequence[str] | None,
    threshold: int | None,
    root: Path,
    apart: Sequence[str],
) -> tuple[tuple[str, ...], MaskReader]:
    """The names of the classes, and the reader of their masks; `apart`: classes whose masks are black and white."""
    colours, ignore = _colours(ref, options, root)
    names = class_names(
        ref,
        root,
        given=classes,
        option=options.get("classes"),
        colours=(colours.number, colours.names) if colours else None,
        apart=apart,
    )
    if apart and colours is not None:
        raise BadInput(f"data {ref!r}: colors= is for one mask of all classes, here each has its own: leave it out")
    kinds = 2 if apart else len(names)
    if options.get("palette", "index") != "index":
        raise BadInput(f"data {ref!r}: palette={options['palette']}: index, or leave it out and say colors=")
    grey = number(ref, "threshold", options["threshold"], 1, 65535) if "threshold" in options else threshold
    if grey is not None and kinds != 2:
        raise BadInput(f"data {ref!r}: threshold={grey} is for two classes, not for {kinds}")
    for other, given in {"threshold": grey is not None, "palette": "palette" in options}.items():
        if colours is not None and given:
            raise BadInput(f"data {ref!r}: colors= says which colour is which class; leave out {other}=")
    told = classes is not None or "classes" in options or colours is not None or not os.path.isfile(root / FILE)
    by_index, origin = "palette" in options, "" if told else FILE
    return names, MaskReader(kinds, grey, colours=colours, ignore=ignore, by_index=by_index, origin=origin)


def _colours(ref: str, options: dict[str, str], root: Path) -> tuple[ColourMap | None, int | None]:
    """The colours of the classes, if the reference has some; the number or colour of what is not judged."""
    if "colors" not in options:
        return None, number(ref, "ignore", options["ignore"], 0, 65535) if "ignore" in options else None
    colours, ignore = read_colours(options["colors"], root), None
    if "ignore" in options:
        if (ignore := colour_of(options["ignore"])) is None:
            raise BadInput(f"data {ref!r}: ignore={options['ignore']}: with colors= a colour, RRGGBB or transparent")
        colours = colours.without(ignore)
    return colours, ignore


def _synthetic(
    ref: str, place: str, options: dict[str, str], split: str, classes: int | Sequence[str] | None
) -> Samples:
    from leanconv.train.synthetic.wafer import CLASSES, SyntheticSource

    if place != "synthetic:wafer":
        raise UnknownName(f"data {ref!r}: unknown generator; known: synthetic:wafer")
    limits = {"size": (16, 4096), "count": (1, 10**7), "seed": (0, 2**31 - 1)}
    for key in options:
        if key not in limits:
            raise UnknownName(
                f"data {ref!r}: unknown option {key!r}{nearest(key, list(limits))}; known: size, count, seed"
            )
    given = {key: number(ref, key, value, *limits[key]) for key, value in options.items()}
    count, named = (classes, ()) if isinstance(classes, int) else (len(classes or CLASSES), tuple(classes or ()))
    if count != len(CLASSES):
        raise BadInput(f"data {ref!r}: it draws {len(CLASSES)} classes, the recipe or run says {count}")
    return Samples(SyntheticSource(split, **given), named or CLASSES)
