"""Images and masks as files: how a folder is divided into splits, which mask belongs to which image."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from leanconv.errors import BadInput
from leanconv.train.data.image_files import Found, folders_in, images_in, left_out, no_images
from leanconv.train.data.image_reader import listing
from leanconv.train.data.pairs import PairReader
from leanconv.train.data.splits import NoSplit, by_split, meaning, same_name, split_by_name

Pair = tuple[Path, Path]  # of files or of folders: images, masks
Masks = Path | dict[str, Path]  # of an image: one file, or one of each class


class FolderSource:
    """Pairs of files, image and mask."""

    def __init__(self, pairs: Sequence[tuple[Path, Masks]], reader: PairReader) -> None:
        self.pairs = [(image, mask) for image, mask in pairs if isinstance(mask, Path)]
        self.reader = reader
        self.names: Sequence[str] = [image.stem for image, _ in self.pairs]

    def sizes(self, index: int) -> tuple[int, int]:
        """Height and width by the headers."""
        image, mask = self.pairs[index]
        return self.reader.sizes(image, mask, str(image), str(mask))

    def read(self, index: int) -> tuple[Tensor, Tensor]:
        """Decode image and mask."""
        image, mask = self.pairs[index]
        return self.reader.read(image, mask, str(image), str(mask))


class Layout(NamedTuple):
    """The folders of images and masks: per split, or of an undivided folder."""

    splits: dict[str, Pair]
    whole: Pair | None
    unused: list[str]  # names of folders beside them


def layout_of(root: Path, *, divided: bool = True) -> Layout:
    """How a folder of images and masks is divided: not at all, as train/images or as images/train.

    Args:
        divided: False where folders called train or test are no splits.
    Raises: BadInput where it can be read in two ways.
    """
    tops = folders_in(root)
    images, masks = _called(tops, "images"), _called(tops, "masks")
    above = by_split(top for top in tops if _called(folders_in(top), "images")) if divided else {}
    below = by_split(folders_in(images)) if images and divided else {}
    if above and images:
        first = next(iter(above.values())).name
        raise BadInput(f"{root}: holds {first}/images/ and {images.name}/ as well: keep one of the two")
    used = [*above.values(), *filter(None, (images, masks))]
    unused = [top.name for top in tops if top not in used]
    if above:
        return Layout({split: _inside(top) for split, top in above.items()}, None, unused)
    if images and below:
        own = by_split(folders_in(masks)) if masks else {}
        beside = masks or root / "masks"
        halves = {split: (folder, own.get(split, beside / folder.name)) for split, folder in below.items()}
        return Layout(halves, None, unused)
    return Layout({}, (images, masks) if images and masks else None, unused)


def is_of_masks(root: Path) -> bool:
    """Whether a folder is meant for images with masks, valid or not."""
    tops = folders_in(root)
    roles = {meaning(top.name)[1] for top in tops}
    if ("images" in roles and roles & {"masks", "labels"}) or any(
        top.name.casefold() in ("images", "masks") for top in tops
    ):
        return True
    return any(_called(folders_in(top), "images") for top in tops)


def folder_pairs(
    root: Path, split: str, *, divided: bool = True, classes: Sequence[str] = ()
) -> tuple[list[tuple[Path, Masks]], str]:
    """The files of a split, and a remark on how they were chosen and which were skipped.

    `classes`: the folders of masks of one class each; an image's mask is then a path a class.
    """
    layout = layout_of(root, divided=divided)
    beside = Found(folders=layout.unused)
    if layout.splits:
        if split not in layout.splits:
            raise NoSplit(f"{root}: there is no {split} split; it has {', '.join(layout.splits)}")
        pairs, found = _pair(*layout.splits[split], classes)
        return pairs, left_out([beside, *found, *_loose(layout)])
    if layout.whole is None:
        raise BadInput(f"{root}: {_missing(folders_in(root))}")
    pairs, found = _pair(*layout.whole, classes)
    parts = split_by_name([image.stem for image, _ in pairs], root)
    chosen, counts = parts[split], ", ".join(f"{len(stems)} {part}" for part, stems in parts.items())
    note = (  # the same for every split, so that it is shown once
        f"{root} is not divided: {counts}, by a hash of the names. Photographs of one part may fall on both sides; "
        "folders train/ val/ test/ keep them apart."
    )
    out = left_out([beside, *found])
    return [pair for pair in pairs if pair[0].stem in chosen], f"{note} {out}".rstrip()


def images_of_all(root: Path, *, divided: bool = True) -> Iterator[tuple[Path, str]]:
    """The images of all splits and their names."""
    layout = layout_of(root, divided=divided)
    for images, _ in layout.splits.values() or filter(None, [layout.whole]):
        yield from ((path, str(path)) for path in images_in(images).images)


def _called(tops: Sequence[Path], role: str) -> Path | None:
    """The folder of that name among some, in any case and in the singular too. Raises BadInput where there are two."""
    found = [top for top in tops if top.name.casefold() == role] or [
        top for top in tops if meaning(top.name) == ("", role)
    ]
    if len(found) > 1:
        raise BadInput(f"{found[0].parent}: {found[0].name}/ and {found[1].name}/ may both be its {role}: rename one")
    return found[0] if found else None


def _inside(top: Path) -> Pair:
    folders = folders_in(top)
    return _called(folders, "images") or top / "images", _called(folders, "masks") or top / "masks"


def _missing(tops: Sequence[Path]) -> str:
    """The message for missing images or masks."""
    wanting = [role for role in ("images", "masks") if not _called(tops, role)]
    other = next((top.name for top in tops if "labels" in meaning(top.name)), "")
    hint = "; divided it is train/images/, train/masks/ and so on"
    if other and "masks" in wanting:
        hint = f"; if {other}/ holds the masks, call it masks/"
    return f"no folder {' and no folder '.join(f'{role}/' for role in wanting)}; it needs images/ and masks/{hint}"


def _loose(layout: Layout) -> list[Found]:
    """Images beside the folders of the splits, to report as skipped."""
    tops = {images.parent for images, _ in layout.splits.values()}
    found = Found()
    for top in tops:
        for path in images_in(top).images:
            found.others[path.suffix.lower()] += 1
    return [found]


def _pair(images: Path, masks: Path, classes: Sequence[str] = ()) -> tuple[list[tuple[Path, Masks]], list[Found]]:
    """The images of a folder with the masks of the same stem, and what else lies there. Raises BadInput where one has
    no partner."""
    found = [_listed(images)]
    by_image, by_class = _by_stem(found[0]), dict[str, dict[str, Path]]()
    for name in classes or ("",):
        if name and not (masks / name).is_dir():  # another split has this class
            continue
        found.append(_listed(masks / name))
        for stem, path in _by_stem(found[-1]).items():
            by_class.setdefault(stem, {})[name] = path
    by_mask = {stem: next(iter(paths.values())) for stem, paths in by_class.items()}
    if not by_image:
        raise BadInput(f"{images}: {no_images(found[0])}")
    if alone := sorted(by_image.keys() - by_mask.keys()):
        raise BadInput(
            f"{masks}: no mask for {len(alone)} of {len(by_image)} images: {listing(by_image[s].name for s in alone)}; "
            f"{_twin(by_image[alone[0]], by_mask) or 'an image without a defect needs an all-black mask'}"
        )
    if alone := sorted(by_mask.keys() - by_image.keys()):
        raise BadInput(f"{images}: no image for {len(alone)} masks: {listing(by_mask[stem].name for stem in alone)}")
    return [(by_image[stem], by_class[stem] if classes else by_mask[stem]) for stem in sorted(by_image)], found


def _listed(folder: Path) -> Found:
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder")
    return images_in(folder)


def _by_stem(found: Found) -> dict[str, Path]:
    """Stem -> image, in the one Unicode form. Raises BadInput where two files have one."""
    by_stem: dict[str, Path] = {}
    for path in found.images:
        other = by_stem.setdefault(same_name(path.stem), path)
        if other.stem != path.stem:
            raise BadInput(
                f"{path.parent}: {other.name!a} and {path.name!a} are one name in two Unicode forms; keep one"
            )
        if other != path:
            raise BadInput(f"{path}: {other.name} has the same stem; keep one of the two")
    return by_stem


def _twin(image: Path, by_mask: dict[str, Path]) -> str:
    """The message for a mask whose name differs from the image's only in upper and lower case."""
    low = same_name(image.stem).casefold()
    twin = next((mask.name for stem, mask in by_mask.items() if stem.casefold() == low), "")
    return f"{image.name} and {twin} differ in capitals: rename one" if twin else ""
