"""Where labelled images lie: `open_labelled` reads a data reference of `labelled.py` and gives one split of it."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from leanconv.errors import BadInput, UnknownName, missing_extra
from leanconv.registry import nearest
from leanconv.train.data import bits_option, number, parse
from leanconv.train.decode import SUFFIXES
from leanconv.train.folders import ALSO, SPLITS, NoSplit, parquet_files, split_by_name
from leanconv.train.images import ImageReader, listing
from leanconv.train.labelled import (
    MAX_CLASSES,
    VAL_SHARE,
    Labelled,
    check_classes,
    check_labels,
    held_out,
    share_of,
)
from leanconv.train.parquet import check_bytes, image_rows, read_columns
from leanconv.train.pictures import Array, Files, LabelSource, Part, Rows

_TORCHVISION = ("CIFAR10", "CIFAR100", "SVHN", "ImageFolder")
Splits = dict[str, LabelSource]


def open_labelled(ref: str, split: str, *, size: int, bits: int | None = None) -> Labelled:
    """The labelled images that a data reference names (see `labelled.py`), of one split: train, val or test.

    `bits` is the reference's option of that name, which wins where both are given.
    Raises BadInput, NoSplit, UnknownName for a split, set or option nobody knows.
    """
    if split not in SPLITS:
        raise UnknownName(f"split {split!r}{nearest(split, list(SPLITS))}: one of {', '.join(SPLITS)}")
    place, options = parse(ref)
    torchvision = place.startswith("torchvision:")
    known = ("val", "root", "download", "bits") if torchvision else ("val", "classes", "bits")
    for key in options:
        if key not in known:
            raise UnknownName(
                f"data {ref!r}: unknown option {key!r}{nearest(key, list(known))}; known: {', '.join(known)}"
            )
    share = share_of(options.get("val", str(VAL_SHARE)), ref)
    reader = ImageReader(bits_option(ref, options) or bits)
    if torchvision:
        classes, splits, note = _torchvision(ref, place.removeprefix("torchvision:"), options, split, reader)
    else:
        root = Path(place).expanduser()
        if place.startswith("synthetic:"):
            raise BadInput(f"data {ref!r} has masks, and classification needs a class for each image")
        if not root.is_dir():
            raise BadInput(f"data {place!r}: no such folder; give one with a folder a class, or with Parquet splits")
        count = number(ref, "classes", options["classes"], 2, MAX_CLASSES) if "classes" in options else 0
        if any(root.glob("*.parquet")):
            reader.everything = partial(image_rows, root)
            classes, splits, note = _parquet(root, split, count, reader)
        else:
            classes, splits, note = _folders(root, reader)
            if count and count != len(classes):
                raise BadInput(f"data {ref!r}: classes={count}, but {root} has {len(classes)} class folders")
    check_classes(classes, ref)
    if "val" in splits and "val" in options and share:
        raise BadInput(
            f"data {ref!r}: val={options['val']} holds out a part of train, and it has a val split: leave one out"
        )
    if "val" not in splits and "train" in splits and split in ("train", "val"):
        train, val, note = held_out(splits["train"], share, classes)
        splits["train"] = train
        if share:
            splits["val"] = val
    if split not in splits:
        raise NoSplit(f"{place}: there is no {split} split; it has {', '.join(splits) or 'none'}")
    notes = [note, _unseen(splits["train"], classes) if "train" in splits else ""]
    return Labelled(splits[split], classes, size, "; ".join(filter(None, notes)), reader)


def _unseen(train: LabelSource, classes: Sequence[str]) -> str:
    """What to say of classes that nothing is learnt of: labels with gaps, or a class that only other splits have."""
    seen = set(train.labels)
    if not (unseen := [name for place, name in enumerate(classes) if place not in seen]):
        return ""
    return f"{len(unseen)} of {len(classes)} classes have no training images: {listing(unseen)}"


def _images(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    yield from ((path, str(path)) for path in paths)


def has_class_folders(root: Path) -> bool:
    """Whether a folder holds folders of images, divided into splits or not."""
    tops = [root / name for split in SPLITS for name in ALSO[split] if (root / name).is_dir()] or [root]
    return any(_pictures(folder) for top in tops for folder in _subfolders(top))


def _folders(root: Path, reader: ImageReader) -> tuple[list[str], Splits, str]:
    """Classes, and files of each split; an undivided folder is divided by a hash of the names."""
    tops = {split: next((root / n for n in ALSO[split] if (root / n).is_dir()), None) for split in SPLITS}
    there = {split: top for split, top in tops.items() if top is not None} or {"": root}
    classes = sorted({folder.name for top in there.values() for folder in _subfolders(top)})
    splits: dict[str, Files] = {}
    for split, top in there.items():
        paths: list[Path] = []
        labels: list[int] = []
        for folder in _subfolders(top):
            if not (found := _pictures(folder)):
                raise BadInput(
                    f"{folder}: no images (png, jpg, jpeg, webp, bmp, tif): an empty class; fill or remove it"
                )
            paths += found
            labels += [classes.index(folder.name)] * len(found)
        if not paths:
            raise BadInput(f"{top}: no class folders with images")
        names = [str(path.relative_to(top).with_suffix("")) for path in paths]
        splits[split] = Files(paths, labels, names, reader)
    reader.everything = partial(_images, [path for source in splits.values() for path in source.paths])
    if "" not in splits:
        return classes, dict(splits), ""
    check_classes(classes, root)
    whole = splits[""]
    chosen = split_by_name(list(whole.names), root)
    divided: Splits = {
        split: Part(whole, [i for i, name in enumerate(whole.names) if name in chosen[split]]) for split in SPLITS
    }
    counts = ", ".join(f"{len(part.names)} {split}" for split, part in divided.items())
    note = (
        f"{root} is not divided: {counts}, by a hash of the names. Photographs of one part may fall on both sides; "
        "folders train/ val/ test/ keep them apart."
    )
    return classes, divided, note


def _subfolders(top: Path) -> list[Path]:
    return sorted(path for path in top.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """Image files of a folder and of the folders in it, linked ones too."""
    found, entered = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(here)) in entered:  # a link back up: its files are there already
            folders.clear()
            continue
        entered.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, name) for name in files if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
    return sorted(found)


def _parquet(root: Path, split: str, count: int, reader: ImageReader) -> tuple[list[str], Splits, str]:
    """Classes by the label columns of all splits; the images of the asked one (for val also those of train)."""
    files = {each: found for each in SPLITS if (found := parquet_files(root, each))}
    if not files:
        parquet_files(root, split, needed=True)
    labels = {each: [(path, read_columns(path, ("label",), ("label_name",))) for path in files[each]] for each in files}
    classes, index = _class_names([table for tables in labels.values() for _, table in tables], count)
    wanted = split if split in files else "train" if split == "val" else ""
    splits: Splits = {}
    check_bytes(files.get(wanted, []), ("image",))
    for each in files:
        rows: list[Any] = []
        numbers: list[int] = []
        starts: list[int] = []
        for path, table in labels[each]:
            starts.append(len(numbers))
            raw = _numbered(table["label"], index, path)
            numbers += check_labels(raw, len(classes), f"{path}, row")
            if each == wanted:
                rows += read_columns(path, ("image",))["image"]
        if not numbers:
            raise BadInput(f"{files[each][0]}: no rows")
        splits[each] = Rows(files[each], rows or [b""] * len(numbers), numbers, starts, reader)
    return classes, splits, ""


def _class_names(tables: Sequence[dict[str, list[Any]]], count: int) -> tuple[list[str], dict[Any, int]]:
    """Names by class index, and the index of labels that are words."""
    labels = [label for table in tables for label in table["label"]]
    if words := sorted({label for label in labels if isinstance(label, str)}):
        return words, {word: place for place, word in enumerate(words)}
    whole = [label for label in labels if isinstance(label, int)]
    count = count or max(whole, default=-1) + 1
    names = [str(place) for place in range(min(count, MAX_CLASSES))]
    for table in tables:
        for label, name in zip(table["label"], table.get("label_name", []), strict=False):
            if isinstance(label, int) and 0 <= label < len(names) and isinstance(name, str) and name:
                names[label] = name
    if len(set(names)) < len(names):  # ImageNet has two classes "crane", and "maillot"
        times = Counter(names)
        names = [name if times[name] == 1 else f"{name} ({place})" for place, name in enumerate(names)]
    return names, {}


def _numbered(labels: list[Any], index: dict[Any, int], path: Path) -> list[Any]:
    """The numbers of labels that are words; others as they are, unless another file has words."""
    if index and (row := next((row for row, label in enumerate(labels) if isinstance(label, int)), None)) is not None:
        raise BadInput(
            f"{path}, row {row}: label {labels[row]!r}: other files have words such as {next(iter(index))!r}; "
            "write all labels alike"
        )
    return [index[label] if isinstance(label, str) else label for label in labels]


def _torchvision(
    ref: str, name: str, options: dict[str, str], split: str, reader: ImageReader
) -> tuple[list[str], Splits, str]:  # fmt: skip
    if name not in _TORCHVISION:
        raise UnknownName(
            f"data {ref!r}: unknown set {name!r}{nearest(name, list(_TORCHVISION))}; known: {', '.join(_TORCHVISION)}"
        )
    if options.get("download", "false") not in ("true", "false"):
        raise BadInput(f"data {ref!r}: download={options['download']}: true or false")
    root = Path(options.get("root", "data")).expanduser()
    if name == "ImageFolder":
        if not root.is_dir():
            raise BadInput(f"data {ref!r}: {root}: no such folder; say root=DIR, with a folder a class")
        return _folders(root, reader)
    each = "test" if split == "test" else "train"
    classes, source = _torchvision_split(ref, name, root, each, options.get("download") == "true")
    return classes, {each: source}, ""


def _torchvision_split(ref: str, name: str, root: Path, split: str, download: bool) -> tuple[list[str], LabelSource]:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise missing_extra("torchvision", "train") from error
    which: dict[str, Any] = {"split": split} if name == "SVHN" else {"train": split == "train"}
    try:
        found: Any = getattr(datasets, name)(str(root), download=download, **which)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(
            f"data {ref!r}: {reason} Looked in {root}: say root=DIR, or &download=true to fetch it"
        ) from error
    classes = list(getattr(found, "classes", None) or map(str, range(10)))
    images = torch.from_numpy(found.data)  # CIFAR: N H W 3; SVHN: N 3 H W
    images = images if name == "SVHN" else images.permute(0, 3, 1, 2).contiguous()
    labels = [int(label) for label in (found.labels if name == "SVHN" else found.targets)]
    return classes, Array(images, check_labels(labels, len(classes), f"{name} {split}, image"))
