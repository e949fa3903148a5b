"""Images and their masks: from a folder, from Parquet splits, or made on the fly.

A data reference is one of

    DIR                        with images/ and masks/ (same stem), or with train-*, val-* and test-*.parquet
    DIR?classes=4              masks of class indices 0 ... 3; or their names: classes=background,scratch,particle
    DIR?threshold=128          soft masks: a grey of at least that is a defect
    DIR?side=256               images reduced to at most that many pixels on their longer side, and their masks
    synthetic:wafer?size=128&count=400&seed=0

A folder may be divided: DIR/train/images, DIR/train/masks, or DIR/images/train, DIR/masks/train; likewise val and test.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from leanconv.errors import BadInput, UnknownName
from leanconv.registry import nearest
from leanconv.train.images import SUFFIXES, listing, read_image, read_mask, read_size
from leanconv.train.reduce import ReducedSource

SPLITS = ("train", "val", "test")
# Decoded samples are kept in memory up to this much; each worker process of a DataLoader shares or repeats it.
CACHE_BYTES = 512 * 2**20

# Names that folders and files of a split may have.
ALSO = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class NoSplit(BadInput):
    """The data has other splits, but not the one that was asked for."""


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
        pairs, note = _folder_pairs(root, split)
        source = FolderSource(pairs, len(names), grey)
    side = side_of(ref)
    return Samples(source if side is None else ReducedSource(source, side), names, note)


def side_of(ref: str) -> int | None:
    """The option `side` of a reference: the longest that a network's images may be, in pixels; None: as they are."""
    options = parse(ref)[1]
    return number(ref, "side", options["side"], 16, 65535) if "side" in options else None


class FolderSource:
    """Pairs of files, image and mask."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], classes: int, threshold: int | None) -> None:
        self.pairs, self.classes, self.threshold = list(pairs), classes, threshold
        self.names: Sequence[str] = [image.stem for image, _ in pairs]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width by the headers."""
        image, mask = self.pairs[index]
        return same_size(read_size(image, str(image)), read_size(mask, str(mask)), str(mask))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The decoded image and mask."""
        path, mask_path = self.pairs[index]
        image, mask = read_image(path, str(path)), read_mask(mask_path, str(mask_path), self.classes, self.threshold)
        same_size(tuple(image.shape[1:]), tuple(mask.shape), str(mask_path))
        return image, mask


def same_size(image: tuple[int, ...], mask: tuple[int, ...], name: str) -> tuple[int, int]:
    """The common height and width. Raises BadInput naming the mask."""
    if image != mask:
        raise BadInput(
            f"{name}: the mask is {mask[1]}x{mask[0]} (width x height), its image {image[1]}x{image[0]}; "
            "give the mask the image's size"
        )
    return image[0], image[1]


def _folder_pairs(root: Path, split: str) -> tuple[list[tuple[Path, Path]], str]:
    """The files of a split, and a note of how they were chosen."""
    layouts = {each: found for each in SPLITS if (found := _split_folders(root, each))}
    if layouts:
        if split not in layouts:
            raise NoSplit(f"{root}: there is no {split} split; it has {', '.join(layouts)}")
        return _pair(*layouts[split]), ""
    missing = [name for name in ("images", "masks") if not (root / name).is_dir()]
    if missing:
        raise BadInput(
            f"{root}: no folder {' and no folder '.join(f'{m}/' for m in missing)}; it needs images/ and masks/"
        )
    pairs = _pair(root / "images", root / "masks")
    chosen = split_by_name([image.stem for image, _ in pairs], root)[split]
    note = (
        f"{root} is not divided: {split} is {len(chosen)} of {len(pairs)} images, by a hash of their names "
        "(80/10/10). Photographs of one part may fall on both sides; folders train/ val/ test/ keep them apart."
    )
    return [pair for pair in pairs if pair[0].stem in chosen], note


def split_by_name(names: Sequence[str], where: object = "data") -> dict[str, set[str]]:
    """Names to splits by SHA-256: 80 % train, 10 % val, 10 % test; a name stays where it is when others are added.

    An empty val or test takes the training name with the largest hash. Raises BadInput for fewer than three names.
    """
    if len(names) < 3:
        raise BadInput(f"{where}: {len(names)} images cannot be divided into train, val and test; it takes at least 3")
    hashes = {name: hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names}
    split: dict[str, set[str]] = {each: set() for each in SPLITS}
    for name, digest in hashes.items():
        part = int.from_bytes(digest[:8], "big") / 2**64
        split["train" if part < 0.8 else "val" if part < 0.9 else "test"].add(name)
    for each in SPLITS:
        if not split[each]:
            richest = max(split.values(), key=len)
            moved = max(richest, key=lambda name: hashes[name])
            richest.remove(moved)
            split[each].add(moved)
    return split


def _split_folders(root: Path, split: str) -> tuple[Path, Path] | None:
    for name in ALSO[split]:
        if (root / name / "images").is_dir():
            return root / name / "images", root / name / "masks"
        if (root / "images" / name).is_dir():
            return root / "images" / name, root / "masks" / name
    return None


def _pair(images: Path, masks: Path) -> list[tuple[Path, Path]]:
    """The images of a folder with the masks of the same stem. Raises BadInput where one has no partner."""
    by_image, by_mask = _by_stem(images), _by_stem(masks)
    if not by_image:
        raise BadInput(f"{images}: no images (png, jpg, jpeg, webp, bmp, tif)")
    if alone := sorted(by_image.keys() - by_mask.keys()):
        raise BadInput(
            f"{masks}: no mask for {len(alone)} of {len(by_image)} images: {listing(by_image[s].name for s in alone)}; "
            "an image without a defect needs an all-black mask"
        )
    if alone := sorted(by_mask.keys() - by_image.keys()):
        raise BadInput(f"{images}: no image for {len(alone)} masks: {listing(by_mask[stem].name for stem in alone)}")
    return [(by_image[stem], by_mask[stem]) for stem in sorted(by_image)]


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            if path.stem in found:
                raise BadInput(f"{path}: {found[path.stem].name} has the same stem; keep one of the two")
            found[path.stem] = path
    return found


def parquet_files(root: Path, split: str, *, needed: bool = False) -> list[Path]:
    """The Parquet files of a split. Raises NoSplit where one is `needed` and there is none."""
    found = {
        each: sorted(
            {p for name in ALSO[each] for glob in (f"{name}-*.parquet", f"{name}.parquet") for p in root.glob(glob)}
        )
        for each in SPLITS
    }
    if needed and not found[split]:
        there = ", ".join(each for each in SPLITS if found[each]) or "no file named train-*, val-* or test-*"
        raise NoSplit(f"{root}: there is no {split} split ({split}-*.parquet); it has {there}")
    return found[split]


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
