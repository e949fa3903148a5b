"""Images and masks as files: how a folder is divided into splits, which mask belongs to which image."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.decode import SUFFIXES
from leanconv.train.images import listing
from leanconv.train.pairs import PairReader

SPLITS = ("train", "val", "test")
# Names that folders and files of a split may have.
ALSO = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}


class NoSplit(BadInput):
    """The data has other splits, but not the one that was asked for."""


class FolderSource:
    """Pairs of files, image and mask."""

    def __init__(self, pairs: Sequence[tuple[Path, Path]], reader: PairReader) -> None:
        self.pairs, self.reader = list(pairs), reader
        self.names: Sequence[str] = [image.stem for image, _ in pairs]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width by the headers."""
        image, mask = self.pairs[index]
        return self.reader.sizes(image, mask, str(image), str(mask))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """The decoded image and mask."""
        image, mask = self.pairs[index]
        return self.reader.read(image, mask, str(image), str(mask))


def folder_pairs(root: Path, split: str) -> tuple[list[tuple[Path, Path]], str]:
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


def image_files(root: Path) -> Iterator[tuple[Path, str]]:
    """The images of all splits and their names."""
    layouts = [found for split in SPLITS if (found := _split_folders(root, split))]
    for folder in [images for images, _ in layouts] or [root / "images"]:
        yield from ((path, str(path)) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES)


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
