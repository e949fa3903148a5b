"""The splits of a data set: train, val and test, in the common spellings of folders and files.

`Training/`, `VAL`, `dev`, `test_set` and `train2017` are splits as `train`, `val` and `test` are. A name that may mean
something else is not guessed at: where a layout can be read in two ways, the readers refuse it and say what to do.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from leanconv.errors import BadInput
from leanconv.train.data.image_files import folders_in

SPLITS = ("train", "val", "test")

_WORDS = {
    "train": "train", "training": "train", "trn": "train",
    "val": "val", "valid": "val", "validation": "val", "validate": "val", "dev": "val", "development": "val",
    "test": "test", "testing": "test", "tst": "test",
}  # fmt: skip
_ROLES = {
    "images": "images", "image": "images", "imgs": "images", "img": "images",
    "masks": "masks", "mask": "masks",
    **dict.fromkeys(("labels", "annotations", "groundtruth", "gt", "segmentations", "segmentation"), "labels"),
}  # fmt: skip
_SPLIT, _ROLE = ("|".join(sorted(words, key=len, reverse=True)) for words in (_WORDS, _ROLES))
_NAME = re.compile(rf"({_ROLE})?({_SPLIT})?(?:set|split|data|dataset|folder)?({_ROLE})?\d*")
_BETWEEN = re.compile(r"[\s_.\-]+")
_JOINED = re.compile(rf"({_SPLIT})(.+)|(.+?)({_SPLIT})")  # trainA, testimages
# Names of folders that belong together, as other programs call them: JPEGImages, img_dir, imagesTr, inputs and so on.
_LIKE_IMAGES = re.compile(r".*(?:image|img).*|inputs?")
_LIKE_MASKS = re.compile(r".*(?:mask|label|annot|segment|groundtruth).*|ann(?:dir)?|gt.*|targets?|outputs?")


class NoSplit(BadInput):
    """The data has other splits, but not the requested one."""


def meaning(name: str) -> tuple[str, str]:
    """The (split, role) in a folder's or file's name; "" for the part that it lacks, both "" for any other name.

    Split: train, val, test. Role: images, masks, labels (masks by a name that is not read as masks).
    """
    match = _NAME.fullmatch(_BETWEEN.sub("", name.casefold()))
    if match is None:
        return "", ""
    before, split, after = match.groups()
    if before and after:
        return "", ""
    return _WORDS.get(split, ""), _ROLES.get(before or after, "")


def split_of(name: str) -> str:
    """The split of a name that says nothing else; empty for any other name."""
    split, role = meaning(name)
    return "" if role else split


def by_split(paths: Iterable[Path]) -> dict[str, Path]:
    """Split -> its folder. Raises BadInput if two folders have names of one split."""
    found: dict[str, Path] = {}
    for path in paths:
        split = split_of(path.name)
        if split in found:
            raise BadInput(
                f"{path.parent}: {found[split].name}/ and {path.name}/ are both the {split} split: merge them, or "
                "rename one; if the folders are classes, say ?divided=false"
            )
        if split:
            found[split] = path
    return {split: found[split] for split in SPLITS if split in found}


def alike_but_for_split(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that differ only in the word for a split, as `seg_train` and `seg_test` or `trainA` and `testA` do."""
    seen: dict[tuple[str, ...], tuple[str, str]] = {}
    for name in names:
        rest, split = _parted(name)
        if split:
            other, before = seen.setdefault(rest, (name, split))
            if split != before:
                return other, name
    return None


def _parted(name: str) -> tuple[tuple[str, ...], str]:
    """What a name says besides its one word for a split, and that split; "" where it has none, or nothing besides."""
    words = [word for word in _BETWEEN.split(name.casefold()) if word]
    splits = [split_of(word) for word in words]
    if len(words) > 1 and sum(map(bool, splits)) == 1:
        rest = tuple("" if split else word for word, split in zip(words, splits, strict=True))
        return rest, next(filter(None, splits))
    if (match := _JOINED.fullmatch("".join(words))) is None or any(splits):
        return (), ""
    first, after, before, last = match.groups()
    return (("", after) if first else (before, "")), _WORDS[first or last]


def images_and_masks(names: Sequence[str]) -> tuple[str, str] | None:
    """Two names that look like images and their masks, as `JPEGImages` and `SegmentationClass` do."""
    plain = {name: _BETWEEN.sub("", name.casefold()) for name in names}
    masks = [name for name in names if _LIKE_MASKS.fullmatch(plain[name])]
    images = [name for name in names if name not in masks and _LIKE_IMAGES.fullmatch(plain[name])]
    return (images[0], masks[0]) if images and masks else None


def parquet_files(root: Path, split: str, *, needed: bool = False) -> list[Path]:
    """The Parquet files of a split: `train-*.parquet`, `train.parquet` and similar.

    Raises: BadInput where two spellings of one split are there; NoSplit where one is `needed` and there is none.
    """
    spelt: dict[str, dict[str, list[Path]]] = {each: {} for each in SPLITS}
    for path in _parquet(root):
        word = path.stem.split("-")[0]
        if each := split_of(word):
            spelt[each].setdefault(word.rstrip("_.0123456789"), []).append(path)
    for each, words in spelt.items():
        if len(words) > 1:
            shown = " and ".join(f"{word}*.parquet" for word in sorted(words)[:3])
            raise BadInput(f"{root}: {shown} are all the {each} split: name its files alike, or move some away")
    found = {each: sorted(path for paths in words.values() for path in paths) for each, words in spelt.items()}
    if needed and not found[split]:
        there = ", ".join(each for each in SPLITS if found[each]) or "no file named train-*, val-* or test-*"
        raise NoSplit(f"{root}: there is no {split} split ({split}-*.parquet); it has {there}")
    return found[split]


def holds_parquet(root: Path) -> bool:
    """Whether a folder's data are its Parquet files. Raises BadInput if its folders may be data as well."""
    files, folders = _parquet(root), folders_in(root)
    if not any(split_of(path.stem.split("-")[0]) for path in files):
        return bool(files) and not folders
    if others := [path.name for path in folders if any(meaning(path.name))]:
        raise BadInput(f"{root}: holds Parquet splits and {others[0]}/: move one of the two away")
    return True


def _parquet(root: Path) -> list[Path]:
    """The Parquet files in a folder. Raises BadInput."""
    try:
        files = [path for path in root.iterdir() if path.suffix.lower() == ".parquet"]
    except OSError as error:
        raise BadInput(f"{root}: cannot be listed: {error.strerror}") from error
    return sorted(path for path in files if not path.name.startswith("."))


def option_divided(ref: str, options: Mapping[str, str], *, folders: bool = True) -> bool:
    """The option `divided=`: false means that folders named train or test are no splits. Raises BadInput.

    `folders`: whether the data are folders; of others the option says nothing, and is refused.
    """
    value = options.get("divided", "true")
    if value not in ("true", "false"):
        raise BadInput(
            f"data {ref!r}: divided={value}: true; or false where folders called train or test are no splits"
        )
    if not folders and "divided" in options:
        raise BadInput(f"data {ref!r}: divided={value} is about folders, which this data has not: leave it out")
    return value == "true"


def split_by_name(names: Sequence[str], where: object = "data") -> dict[str, set[str]]:
    """Names to splits by SHA-256: 80 % train, 10 % val, 10 % test; further names do not move a name.

    The same name in another Unicode form has the same hash. An empty val or test takes the training name with the
    largest hash. Raises BadInput for fewer than three names.
    """
    if len(names) < 3:
        raise BadInput(f"{where}: {len(names)} images cannot be divided into train, val and test; it takes at least 3")
    hashes = {name: hashlib.sha256(same_name(name).encode(errors="surrogateescape")).digest() for name in names}
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


def same_name(name: str) -> str:
    """The name in one Unicode form: macOS writes é as two characters, other systems as one."""
    return normalize("NFC", name)
