"""open_labelled(): one split of the labelled images of a data reference (`labelled.py`)."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from leanconv.errors import BadInput, UnknownName
from leanconv.extras import needs
from leanconv.registry import nearest
from leanconv.train.data.class_folders import Splits, class_folders
from leanconv.train.data.image_reader import ImageReader, listing
from leanconv.train.data.labelled import (
    MAX_CLASSES,
    VAL_SHARE,
    Labelled,
    check_classes,
    check_labels,
    held_out,
    share_of,
)
from leanconv.train.data.labelled_sources import Array, LabelSource, Rows
from leanconv.train.data.parquet import check_bytes, image_rows, read_columns
from leanconv.train.data.references import bits_option, number, parse
from leanconv.train.data.splits import SPLITS, NoSplit, holds_parquet, option_divided, parquet_files

_TORCHVISION = ("CIFAR10", "CIFAR100", "SVHN", "ImageFolder")


def open_labelled(ref: str, split: str, *, size: int, bits: int | None = None) -> Labelled:
    """The labelled images that a data reference names (see `labelled.py`), of one split: train, val or test.

    `bits`: default of the reference's option of that name.
    Raises BadInput, NoSplit, UnknownName for an unknown split, set or option.
    """
    if split not in SPLITS:
        raise UnknownName(f"split {split!r}{nearest(split, list(SPLITS))}: one of {', '.join(SPLITS)}")
    place, options = parse(ref)
    torchvision = place.startswith("torchvision:")
    known = ("val", "root", "download", "bits", "divided") if torchvision else ("val", "classes", "bits", "divided")
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
        root = Path(os.path.expanduser(place))
        if place.startswith("synthetic:"):
            raise BadInput(f"data {ref!r} has masks, and classification needs a class for each image")
        if not os.path.isdir(root):
            raise BadInput(f"data {place!r}: no such folder; give one with a folder a class, or with Parquet splits")
        count = number(ref, "classes", options["classes"], 2, MAX_CLASSES) if "classes" in options else 0
        divided = option_divided(ref, options, folders=not (parquet := holds_parquet(root)))
        if parquet:
            reader.everything = partial(image_rows, root)
            classes, splits, note = _parquet(root, split, count, reader)
        else:
            classes, splits, note = class_folders(root, reader, divided=divided)
            if count and count != len(classes):
                raise BadInput(f"data {ref!r}: classes={count}, but {root} has {len(classes)} class folders")
    check_classes(classes, ref)
    if "val" in splits and "val" in options and share:
        raise BadInput(
            f"data {ref!r}: val={options['val']} holds out a part of train, and it has a val split: leave one out"
        )
    if "val" not in splits and "train" in splits and split in ("train", "val"):
        train, val, held = held_out(splits["train"], share, classes)
        note = "; ".join(filter(None, [note, held]))
        splits["train"] = train
        if share:
            splits["val"] = val
    if split not in splits:
        raise NoSplit(f"{place}: there is no {split} split; it has {', '.join(splits) or 'none'}")
    notes = [note, _unseen(splits["train"], classes) if "train" in splits else ""]
    return Labelled(splits[split], classes, size, "; ".join(filter(None, notes)), reader)


def _unseen(train: LabelSource, classes: Sequence[str]) -> str:
    """A remark on classes without training images: labels with gaps, or a class of other splits only."""
    seen = set(train.labels)
    if not (unseen := [name for place, name in enumerate(classes) if place not in seen]):
        return ""
    return f"{len(unseen)} of {len(classes)} classes have no training images: {listing(unseen)}"


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
    """Words as their numbers; numbers stay, unless another file has words."""
    if index and (row := next((row for row, label in enumerate(labels) if isinstance(label, int)), None)) is not None:
        raise BadInput(
            f"{path}, row {row}: label {labels[row]!r}: other files have words such as {next(iter(index))!r}; "
            "write all labels alike"
        )
    return [index[label] if isinstance(label, str) else label for label in labels]


def _torchvision(
    ref: str, name: str, options: dict[str, str], split: str, reader: ImageReader
) -> tuple[list[str], Splits, str]:
    if name not in _TORCHVISION:
        raise UnknownName(
            f"data {ref!r}: unknown set {name!r}{nearest(name, list(_TORCHVISION))}; known: {', '.join(_TORCHVISION)}"
        )
    if options.get("download", "false") not in ("true", "false"):
        raise BadInput(f"data {ref!r}: download={options['download']}: true or false")
    root = Path(os.path.expanduser(options.get("root", "data")))
    if name == "ImageFolder":
        if not os.path.isdir(root):
            raise BadInput(f"data {ref!r}: {root}: no such folder; say root=DIR, with a folder a class")
        return class_folders(root, reader, divided=option_divided(ref, options))
    option_divided(ref, options, folders=False)
    each = "test" if split == "test" else "train"
    classes, source = _torchvision_split(ref, name, root, each, options.get("download") == "true")
    return classes, {each: source}, ""


def _torchvision_split(ref: str, name: str, root: Path, split: str, download: bool) -> tuple[list[str], LabelSource]:
    with needs("torchvision", "train"):
        from torchvision import datasets
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
