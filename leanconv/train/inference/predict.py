"""Prediction: the mask, the overlay and the list of defects of each image; of a classifier, its class."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.progress import tracked
from leanconv.runs import RunFolder
from leanconv.table import table
from leanconv.train.data.image_files import Found, images_in, left_out, no_images
from leanconv.train.data.image_reader import listing
from leanconv.train.data.splits import same_name
from leanconv.train.inference.defects import Prediction, judge
from leanconv.train.inference.predict_classes import Failed, Guess, Guesses, list_of, pace
from leanconv.train.inference.serving import Left, Serve, plainly
from leanconv.train.inference.tables import check_tables, update_tables
from leanconv.train.inference.work import Asked, is_classifier, opened
from leanconv.train.inference.written import Places, check_free, write
from leanconv.train.tasks.decision import Decision

if TYPE_CHECKING:
    from PIL.Image import Image

# Class 1, 2, ... in overlays and palettes: no colour of copper, gold, silicon or resist.
_CLEAR = ((255, 0, 200), (0, 220, 255), (80, 255, 60), (255, 255, 0), (120, 80, 255), (255, 90, 60))
# Then PASCAL VOC's: the index's bits go to red, green and blue in turn, so that no two are alike.
_VOC = [
    tuple(sum((index >> 3 * bit + band & 1) << 7 - bit for bit in range(3)) for band in range(3))
    for index in range(1, 250)
]
_COLOURS = (*_CLEAR, *_VOC)


def palette(classes: int) -> list[tuple[int, int, int]]:
    """The colours of the class indices in a mask of several classes: black, then as in overlays."""
    return [(0, 0, 0), *((r, g, b) for r, g, b in _COLOURS)][:classes]


def overlay(image: Tensor, mask: Tensor) -> "Image":
    """The image (uint8 `3 H W`) with each class of the mask (`H W`) tinted and outlined in its own colour."""
    picture = image.permute(1, 2, 0).numpy().copy()  # 3 H W -> H W 3
    classes = mask.numpy()
    for index in np.unique(classes[classes > 0]).tolist():
        colour = np.array(_COLOURS[(index - 1) % len(_COLOURS)], np.float32)
        inside = classes == index
        framed = np.pad(inside, 1, mode="edge")
        core = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
        inner = inside & core
        tinted = picture[inner].astype(np.float32)
        picture[inner] = (tinted + 0.3 * (colour - tinted)).round()
        picture[inside ^ inner] = colour
    return _pil().fromarray(picture)


@dataclass(frozen=True)
class Predictions:
    """The results of `predict` in `out`, the unusable images with the reasons, and remarks on the others.

    `seconds`: from the first image that is read to the last one that is written.
    """

    out: str
    done: tuple[Prediction, ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "out": self.out,
            "images": [prediction.to_dict() for prediction in self.done],
            "failed": [{"image": image, "error": reason} for image, reason in self.failed],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        rows = []
        for p in self.done:
            share = f"{100 * p.area_px / (p.width * p.height):.2f}"
            largest = [f"{' '.join(map(str, d.box))}  {d.score:.3f}  {d.class_name}" for d in p.defects[:1]] or [""]
            rows.append([p.image, f"{p.width}x{p.height}", p.verdict, len(p.defects), p.area_px, share, *largest])
        passed = sum(not p.why for p in self.done)
        note = (
            f"{len(self.done)} of {len(self.done) + len(self.failed)} images written to {self.out}: {passed} pass, "
            f"{len(self.done) - passed} fail"
        )
        note += pace(len(self.done), self.seconds)
        head = ["image", "size", "verdict", "defects", "area px", "area %", "largest: x0 y0 x1 y1  score  class"]
        return table(head, rows, note=note)


def predict(
    model: str | Path | nn.Module,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    threshold: float | str | None = None,
    min_area: int | None = None,
    merge: int | None = None,
    side: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    batch: int | None = None,
    bits: int | None = None,
    device: str = "cpu",
    trust_code: bool = False,
    progress: bool = False,
    overwrite: bool = False,
    serve: Serve = plainly,
) -> Predictions | Guesses:
    """Write `<stem>_mask.png`, `<stem>_overlay.png` and `<stem>.json` to `out` for every image.

    Of all together it writes defects.csv and verdicts.csv. The mask has the class of every pixel; overlay and lists
    have the defects that the run's rule reports.

    A classification run writes `predictions.json` instead, with class and score of every image.

    A file that cannot be read, or that memory does not hold, is left out and listed in `.failed`; the others are
    written, each whole or not at all.

    Args:
        model: a run folder, or a module.
        images: files, or folders of images.
        threshold: probability from which a pixel is of a class; one number, or text like "scratch=0.4,pit=0.6".
            Default: the run's own; else 0.5, and of several logits the largest wins.
        min_area, merge: pixels of the smallest defect, and those between its fragments, see `Rule`. Default: the run's.
        side: the network sees the image reduced to at most this many pixels on its longer side, 0: as it is; default:
            what the run was trained on. Masks have the image's own size in any case.
        tile, overlap, batch: as in `predict_logits`; tiles of several images of one size share a batch. All options of
            masks are refused for a classifier, which sees each image as the square of its recipe's size.
        bits: that a channel of 16-bit images uses; default: as in the training, else what these images use.
        progress: draw a bar on a terminal.
        overwrite: replace files of those names even if they are no earlier prediction of the same images.
        serve: gives the form of the network that runs, which must agree with it; default: the network itself.
    Raises: BadInput for an error outside the images: none given, two of one stem, an unwritable folder, files that
        would be lost. The images' own folder is refused too: masks and annotations beside them must not be overwritten.
    """
    asked = Asked(threshold, min_area, merge, side, tile, overlap, batch, bits, device, trust_code, overwrite)
    folder = None if isinstance(model, nn.Module) else RunFolder.open(model)
    classifier = is_classifier(folder)
    paths, note = _images(images, apart=not classifier)
    if not classifier:
        _not_among(paths, Path(out))
        check_free((Places.of(path, Path(out)) for path in paths), overwrite)
        check_tables(Path(out), overwrite)
    left, reader = Left(len(paths)), asked.reader(folder, partial(_named, paths))
    results: list[Any] = []
    start = time.perf_counter()
    try:
        with opened(model, Path(out), asked, reader, written, serve=serve, left=left) as work:
            start = time.perf_counter()
            for result in tracked(work(paths), "predict", progress=progress, count=len(paths)):
                results.append(result)  # one by one: an interrupted list would be lost
    finally:  # also of what Ctrl-C leaves
        done = tuple(each for each in results if isinstance(each, Prediction))
        if done:
            update_tables(Path(out), done, overwrite)
    seconds = time.perf_counter() - start
    failed = tuple((each.image, each.reason) for each in results if isinstance(each, Failed))
    notes = tuple(filter(None, [note, *reader.notes()]))
    if classifier:
        guesses = tuple(each for each in results if isinstance(each, Guess))
        found = Guesses(str(list_of(Path(out))), guesses, failed, notes, seconds)
        found.write()
        return found
    return Predictions(str(out), done, failed, notes, seconds)


def written(
    places: Places, image: Tensor, logits: Tensor, decision: Decision, overwrite: bool, drafts: Callable[[], Path]
) -> Prediction:
    """The result of one image from its logits `O H W`. All that is written for an image alone is written here."""
    mask, shown, found = judge(str(places.image), logits, decision)
    picture = _mask_image(mask, binary=len(logits) <= 2)
    write(places, picture, overlay(image, shown), found.to_dict(), overwrite, drafts)
    return found


def _mask_image(mask: Tensor, *, binary: bool) -> "Image":
    """0 and 255; or, for more classes, a palette image of their indices, which `open_data` reads back."""
    if binary:
        return _pil().fromarray(mask.numpy() * np.uint8(255))
    picture = _pil().fromarray(mask.numpy())
    picture.putpalette([part for colour in palette(256) for part in colour])
    return picture


def _images(given: Iterable[str | Path], *, apart: bool) -> tuple[list[Path], str]:
    """The files, those of the folders, and a remark on skipped ones.

    Raises: BadInput where there are none; or, with `apart`, where two would write the same files.
    """
    paths: list[Path] = []
    listed: list[Found] = []
    for place in map(Path, given):
        if os.path.isdir(place):
            found = images_in(place)
            if not found.images:
                raise BadInput(f"{place}: {no_images(found)}")
            listed.append(found)
            paths += found.images
        else:
            paths.append(place)
    if not paths:
        raise BadInput("predict needs at least one image")
    by_stem: dict[str, list[Path]] = {}
    for path in dict.fromkeys(paths if apart else ()):
        by_stem.setdefault(same_name(path.stem), []).append(path)
    for same in by_stem.values():
        if len(same) > 1:
            forms = {path.stem for path in same}
            names = listing(map(str, same) if len(forms) == 1 else (ascii(str(path)) for path in same))
            raise BadInput(f"{names} have one stem and would overwrite each other's masks; predict them apart")
    return list(dict.fromkeys(paths)), left_out(listed)


def _named(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    yield from ((path, str(path)) for path in paths)


def _not_among(paths: Sequence[Path], out: Path) -> None:
    if os.path.realpath(out) in {os.path.realpath(path.parent) for path in paths}:
        raise BadInput(f"{out} holds the images themselves, and masks or annotations of theirs perhaps: choose another")


def _pil() -> Any:
    with needs("pillow", "train"):
        from PIL import Image
    return Image
