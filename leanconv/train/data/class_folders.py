"""Classes as folders of images, `DIR/CLASS/...` or `DIR/train/CLASS/...`: find classes and splits."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from leanconv.errors import BadInput
from leanconv.train.data.image_files import (
    Found,
    folders_in,
    holds_images,
    images_below,
    images_in,
    left_out,
    no_images,
)
from leanconv.train.data.image_reader import ImageReader, listing
from leanconv.train.data.labelled_sources import Files, LabelSource, Part
from leanconv.train.data.splits import (
    SPLITS,
    alike_but_for_split,
    by_split,
    images_and_masks,
    same_name,
    split_by_name,
    split_of,
)

Splits = dict[str, LabelSource]


def has_class_folders(root: Path) -> bool:
    """Whether a folder holds folders of images, divided into splits or not."""
    return any(holds_images(folder) for folder in folders_in(root))


def class_folders(root: Path, reader: ImageReader, *, divided: bool = True) -> tuple[list[str], Splits, str]:
    """Classes, the files of each split, and a note; an undivided folder is divided by a hash of the names.

    Args:
        divided: False where folders called train or test are classes.
    Raises: BadInput for an empty class, and for a layout that can be read in two ways.
    """
    tops = _tops(root) if divided else {"": root}
    folders = {split: _classes(top) for split, top in tops.items()}
    _one_spelling(folders)
    classes = sorted({name for named in folders.values() for name in named})
    splits: dict[str, Files] = {}
    listed: list[Found] = [_loose(top) for top in tops.values()]
    for split, named in folders.items():
        paths: list[Path] = []
        labels: list[int] = []
        for name, folder in named.items():
            found = images_below(folder)
            if not found.images:
                raise BadInput(f"{folder}: {no_images(found)}: an empty class; fill or remove it")
            listed.append(found)
            paths += found.images
            labels += [classes.index(name)] * len(found.images)
        if not paths:
            raise BadInput(f"{tops[split]}: no class folders with images; a split holds a folder a class")
        names = [str(path.relative_to(tops[split]).with_suffix("")) for path in paths]
        splits[split] = Files(paths, labels, names, reader)
    reader.everything = partial(_named, [path for source in splits.values() for path in source.paths])
    if "" not in splits:
        used = set(tops.values())
        listed.append(Found(folders=[top.name for top in folders_in(root) if top not in used]))
        return classes, dict(splits), left_out(listed)
    _check_several(root, folders[""])
    parts, note = _divided(root, splits[""])
    return classes, parts, f"{note} {left_out(listed)}".rstrip()


def _tops(root: Path) -> dict[str, Path]:
    """Split -> its folder; "" -> the root of undivided data. Raises BadInput if it may be either."""
    folders = folders_in(root)
    named = [folder for folder in folders if split_of(folder.name)]
    if not named:
        _no_lookalikes(root, folders)
        return {"": root}
    tops = by_split(named)
    if not any(holds_images(inner) for top in tops.values() for inner in folders_in(top)):
        raise BadInput(
            f"{root}: {listing(f'{top.name}/' for top in tops.values())} may be splits or classes: in a split, images "
            "lie in a folder a class (train/CLASS/1.jpg); if they are classes, say ?divided=false"
        )
    for top in tops.values():
        if pair := images_and_masks([folder.name for folder in folders_in(top)]):
            raise BadInput(
                f"{top}: {pair[0]}/ and {pair[1]}/ look like images and their masks: call them images/ and masks/, or, "
                "if they are classes, by other names"
            )
    return tops


def _no_lookalikes(root: Path, folders: Sequence[Path]) -> None:
    """Raise BadInput for folders that look like classes and hardly are."""
    names = [folder.name for folder in folders]
    if pair := alike_but_for_split(names):
        raise BadInput(
            f"{root}: {pair[0]}/ and {pair[1]}/ look like splits: call them train, val and test; if they are classes, "
            "say ?divided=false"
        )
    if pair := images_and_masks(names):
        raise BadInput(
            f"{root}: {pair[0]}/ and {pair[1]}/ look like images and their masks: call them images/ and masks/; "
            "if they are classes, say task=classify and ?divided=false"
        )
    if inner := _in_each(folders):
        raise BadInput(
            f"{root}: {listing(f'{name}/' for name in names)} hold the same folders ({listing(inner)}), as splits do: "
            "call them train, val and test; if they are classes, say ?divided=false"
        )


def _in_each(folders: Sequence[Path]) -> list[str]:
    """The names of folders of images that lie in each of several folders; none where it is one name."""
    shared: set[str] = set()
    for place, folder in enumerate(folders):
        names = {inner.name for inner in folders_in(folder) if holds_images(inner)}
        shared = shared & names if place else names
        if len(shared) < 2:
            return []
    return sorted(shared) if len(folders) > 1 else []


def _classes(top: Path) -> dict[str, Path]:
    """Class -> folder. Raises BadInput if two names are equal in another Unicode form."""
    found: dict[str, Path] = {}
    for folder in folders_in(top):
        other = found.setdefault(same_name(folder.name), folder)
        if other != folder:
            raise BadInput(f"{top}: {other.name!a} and {folder.name!a} are one name in two Unicode forms; merge them")
    return found


def _one_spelling(folders: dict[str, dict[str, Path]]) -> None:
    """Raise BadInput if splits spell a class in upper and in lower case. In one split these are two classes."""
    spelt: dict[str, Path] = {}
    times = [Counter(name.casefold() for name in named) for named in folders.values()]
    together = {name for each in times for name, count in each.items() if count > 1}
    for named in folders.values():
        for name, folder in named.items():
            other = spelt.setdefault(name.casefold(), folder)
            if same_name(other.name) != name and name.casefold() not in together:
                raise BadInput(f"{folder} and {other} differ in capitals alone: give the class one name in all splits")


def _check_several(root: Path, named: dict[str, Path]) -> None:
    """Raise BadInput for fewer than two classes: probably it is the wrong folder."""
    if len(named) > 1:
        return
    inner = next((folder for folder in named.values() if has_class_folders(folder)), None)
    hint = f"; if its folders are the classes, give {inner}" if inner else ""
    raise BadInput(
        f"{root}: classification needs at least two classes, found {len(named)}: {', '.join(named) or 'none'}{hint}"
    )


def _divided(root: Path, whole: Files) -> tuple[Splits, str]:
    """An undivided source in three parts, and a remark about it."""
    chosen = split_by_name(list(whole.names), root)
    parts: Splits = {
        split: Part(whole, [i for i, name in enumerate(whole.names) if name in chosen[split]]) for split in SPLITS
    }
    counts = ", ".join(f"{len(part.names)} {split}" for split, part in parts.items())
    return parts, (
        f"{root} is not divided: {counts}, by a hash of the names. Photographs of one part may fall on both sides; "
        "folders train/ val/ test/ keep them apart."
    )


def _loose(top: Path) -> Found:
    """The images beside the class folders, to report as skipped."""
    found = Found()
    for path in images_in(top).images:
        found.others[path.suffix.lower()] += 1
    return found


def _named(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    yield from ((path, str(path)) for path in paths)
