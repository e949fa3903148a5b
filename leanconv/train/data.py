"""Images and their masks: from a folder, from Parquet splits, or made on the fly.

A data reference is one of

    DIR                        with images/ and masks/ (same stem), or with train-*, val-* and test-*.parquet
    DIR?classes=4              masks of class indices 0 ... 3; or their names: classes=background,scratch,particle
    DIR?threshold=128          soft masks: a grey of at least that is a defect
    DIR?side=256               images reduced to at most that many pixels on their longer side, and their masks
    synthetic:wafer?size=128&count=400&seed=0

A folder may be divided: DIR/train/images, DIR/train/masks, or DIR/images/train, DIR/masks/train; likewise val and test.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from leanconv.errors import BadInput, UnknownName
from leanconv.registry import nearest
from leanconv.train.folders import SPLITS, FolderSource, folder_pairs, parquet_files
from leanconv.train.reduce import ReducedSource

# Decoded samples are kept in memory up to this much; each worker process of a DataLoader shares or repeats it.
CACHE_BYTES = 512 * 2**20


class Sample(NamedTuple):
    """One image: uint8 `3 H W`, its mask of class indices uint8 `H W`, and its name. Not to be written into."""

    image: Tensor
    mask: Tensor
    name: str


class Source(Protocol):
    """Where samples come from."""

    names: Sequence[str]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width from the headers alone. Raises BadInput where image and mask disagree."""

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The decoded image and mask. Raises BadInput."""


class Samples(Dataset[Sample]):
    """The samples of one split.

    Attributes:
        classes: names; the first is the background.
        note: what a user should know of how the split came about; may be empty.
    """

    def __init__(self, source: Source, classes: Sequence[str], note: str = "") -> None:
        self.source, self.classes, self.note = source, tuple(classes), note
        self._cache: dict[int, Sample] = {}
        self._room = CACHE_BYTES

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
        """Find bad files now rather than in the third epoch.

        Reads every header; then decodes, and keeps, the images that the memory limit holds (all of a small set).
        A bar is drawn on a terminal for more than a few hundred images. Raises BadInput for the first bad file.
        """
        steps: Iterable[int] = range(2 * len(self))
        if progress and len(self) > 300:
            from rich.console import Console
            from rich.progress import track

            console = Console(stderr=True)
            steps = track(steps, "checking images", console=console, disable=not console.is_terminal, transient=True)
        room = CACHE_BYTES
        for step in steps:
            index = step % len(self)
            if step < len(self):
                self.source.sizes(index)
            elif room > 0:
                sample = self[index]
                room -= sample.image.numel() + sample.mask.numel()


def open_data(ref: str, split: str, *, classes: int | Sequence[str] = 2, threshold: int | None = None) -> Samples:
    """The samples that a data reference names (see the head of this file), of one split: train, val or test.

    `classes` and `threshold` are the reference's options of the same name, which win where both are given.
    Nothing is decoded yet; `Samples.check()` does. Raises BadInput, UnknownName for a split or option nobody knows.
    """
    if split not in SPLITS:
        raise UnknownName(f"split {split!r}{nearest(split, list(SPLITS))}: one of {', '.join(SPLITS)}")
    place, options = parse(ref)
    if place.startswith("synthetic:"):
        return _synthetic(ref, place, options, split)
    if unknown := set(options) - {"classes", "threshold", "side"}:
        raise UnknownName(f"data {ref!r}: unknown option {sorted(unknown)[0]!r}; known: classes, threshold, side")
    names = _class_names(options.get("classes", classes), ref)
    grey = number(ref, "threshold", options["threshold"], 1, 65535) if "threshold" in options else threshold
    if grey is not None and len(names) != 2:
        raise BadInput(f"data {ref!r}: threshold={grey} is for two classes, not for {len(names)}")
    root = Path(place).expanduser()
    if not root.is_dir():
        raise BadInput(
            f"data {place!r}: no such folder; give a folder with images/ and masks/, one with Parquet splits, "
            "or synthetic:wafer"
        )
    if any(root.glob("*.parquet")):
        from leanconv.train.parquet import ParquetSource

        source: Source = ParquetSource(parquet_files(root, split, needed=True), len(names), grey)
        note = ""
    else:
        pairs, note = folder_pairs(root, split)
        source = FolderSource(pairs, len(names), grey)
    side = side_of(ref)
    return Samples(source if side is None else ReducedSource(source, side), names, note)


def side_of(ref: str) -> int | None:
    """The option `side` of a reference: the longest that a network's images may be, in pixels; None: as they are."""
    options = parse(ref)[1]
    return number(ref, "side", options["side"], 16, 65535) if "side" in options else None


def parse(ref: str) -> tuple[str, dict[str, str]]:
    """`place?key=value&key=value` -> place and options. A folder whose name holds a `?` is taken as it is."""
    place, mark, query = ref.partition("?")
    if not mark or Path(ref).is_dir():
        return ref, {}
    options: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise BadInput(f"data {ref!r}: options are written ?key=value&key=value, got {part!r}")
        options[key] = value
    return place, options


def _class_names(classes: int | str | Sequence[str], ref: str) -> tuple[str, ...]:
    if isinstance(classes, str):
        classes = int(classes) if classes.isdigit() else classes.split(",")
    if isinstance(classes, int):
        classes = (
            ("background", "defect") if classes == 2 else ["background", *(f"class{i}" for i in range(1, classes))]
        )
    if not 2 <= len(classes) <= 255 or len(set(classes)) != len(classes):
        raise BadInput(f"data {ref!r}: classes={','.join(classes)}: 2 to 255 different names, the background first")
    return tuple(classes)


def number(ref: str, key: str, value: str, low: int, high: int) -> int:
    """A whole number among a reference's options. Raises BadInput outside of low ... high."""
    if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
        raise BadInput(f"data {ref!r}: {key}={value}: a whole number from {low} to {high}")
    return int(value)


def _synthetic(ref: str, place: str, options: dict[str, str], split: str) -> Samples:
    from leanconv.train.synthetic import CLASSES, SyntheticSource

    if place != "synthetic:wafer":
        raise UnknownName(f"data {ref!r}: unknown generator; known: synthetic:wafer")
    limits = {"size": (16, 4096), "count": (1, 10**7), "seed": (0, 2**31 - 1)}
    for key in options:
        if key not in limits:
            raise UnknownName(
                f"data {ref!r}: unknown option {key!r}{nearest(key, list(limits))}; known: size, count, seed"
            )
    given = {key: number(ref, key, value, *limits[key]) for key, value in options.items()}
    return Samples(SyntheticSource(split, **given), CLASSES)
