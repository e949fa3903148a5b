"""Prediction: the mask, the overlay and the list of defects of each image; of a classifier, its class."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.extras import needs
from leanconv.runs import RunFolder
from leanconv.table import table
from leanconv.train.data.image_files import Found, images_in, left_out, no_images
from leanconv.train.data.image_reader import listing
from leanconv.train.data.splits import same_name
from leanconv.train.inference.defects import Defect, find_defects
from leanconv.train.inference.predict_classes import Failed, Guess, Guesses, list_of, pace
from leanconv.train.inference.serving import Left, Serve, plainly
from leanconv.train.inference.work import Asked, is_classifier, opened
from leanconv.train.inference.written import Places, check_free, write
from leanconv.train.progress import tracked
from leanconv.train.tasks.evaluate import predicted_classes

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


def defect_score(logits: Tensor) -> Tensor:
    """The probability `H W` of any class but the background, from logits `O H W`."""
    return logits[0].sigmoid() if len(logits) == 1 else 1 - logits.softmax(0)[0]


def overlay(image: Tensor, mask: Tensor) -> "Image":
    """The image (uint8 `3 H W`) with each class of the mask (`H W`) tinted and outlined in its own colour."""
    picture = image.permute(1, 2, 0).numpy().copy()  # 3 H W -> H W 3
    classes = mask.numpy()
    for index in np.unique(classes[classes > 0]).tolist():
        colour = np.array(_COLOURS[(index - 1) % len(_COLOURS)], np.float32)
        inside = classes == index
        framed = np.pad(inside, 1, mode="edge")
        core = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
        tinted = picture[inside & core].astype(np.float32)
        picture[inside & core] = (tinted + 0.3 * (colour - tinted)).round()
        picture[inside & ~core] = colour
    return _pil().fromarray(picture)


@dataclass(frozen=True)
class Prediction:
    """The defects of one image."""

    image: str
    width: int
    height: int
    threshold: float | None
    defects: tuple[Defect, ...]

    @property
    def area_px(self) -> int:
        """The number of defect pixels."""
        return sum(defect.area_px for defect in self.defects)

    def __str__(self) -> str:
        number = f"{len(self.defects)} defect{'' if len(self.defects) == 1 else 's'}"
        return f"{self.image}  {self.width}x{self.height}  {number}  {self.area_px} px"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: also what `<stem>.json` holds."""
        return {
            "image": self.image,
            "width": self.width,
            "height": self.height,
            "threshold": self.threshold,
            "defect_area_px": self.area_px,
            "defects": [defect.to_dict() for defect in self.defects],
        }


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
            largest = [" ".join(map(str, d.box)) + f"  {d.score:.3f}" for d in p.defects[:1]] or [""]
            rows.append([p.image, f"{p.width}x{p.height}", len(p.defects), p.area_px, share, *largest])
        note = f"{len(self.done)} of {len(self.done) + len(self.failed)} images written to {self.out}"
        note += pace(len(self.done), self.seconds)
        head = ["image", "size", "defects", "area px", "area %", "largest: x0 y0 x1 y1  score"]
        return table(head, rows, note=note)


def predict(
    model: str | Path | nn.Module,
    images: Iterable[str | Path],
    out: str | Path,
    *,
    threshold: float | None = None,
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

    A classification run writes `predictions.json` instead, with class and score of every image.

    A file that cannot be read, or that memory does not hold, is left out and listed in `.failed`; the others are
    written, each whole or not at all.

    Args:
        model: a run folder, or a module.
        images: files, or folders of images.
        threshold: probability from which a pixel is a defect; default: the run's own, else 0.5. Refused for K classes,
            of which the largest logit wins.
        side: the network sees the image reduced to at most this many pixels on its longer side, 0: as it is; default:
            what the run was trained on. Masks have the image's own size in any case.
        tile, overlap, batch: as in `predict_logits`; tiles of several images of one size share a batch. These, `side`
            and `threshold` are for masks alone: a classifier sees each image as the square of its recipe's size, and
            they are refused.
        bits: that a channel of 16-bit images uses; default: as in the training, else what these images use.
        progress: draw a bar on a terminal.
        overwrite: replace files of those names even if they are no earlier prediction of the same images.
        serve: gives the form of the network that runs, which must agree with it; default: the network itself.
    Raises: BadInput for an error outside the images: none given, two of one stem, an unwritable folder, files that
        would be lost. The images' own folder is refused too: masks and annotations beside them must not be overwritten.
    """
    asked = Asked(threshold, side, tile, overlap, batch, bits, device, trust_code, overwrite)
    folder = None if isinstance(model, nn.Module) else RunFolder.open(model)
    paths, note = _images(images, apart=not is_classifier(folder))
    if not is_classifier(folder):
        _not_among(paths, Path(out))
        check_free((Places.of(path, Path(out)) for path in paths), overwrite)
    left, reader = Left(len(paths)), asked.reader(folder, partial(_named, paths))
    with opened(model, Path(out), asked, reader, written, serve=serve, left=left) as work:
        start = time.perf_counter()
        results = list(tracked(work(paths), "predict", progress=progress, count=len(paths)))
        seconds = time.perf_counter() - start
    failed = tuple((each.image, each.reason) for each in results if isinstance(each, Failed))
    notes = tuple(filter(None, [note, *reader.notes()]))
    if is_classifier(folder):
        guesses = tuple(each for each in results if isinstance(each, Guess))
        found = Guesses(str(list_of(Path(out))), guesses, failed, notes, seconds)
        found.write()
        return found
    done = tuple(each for each in results if isinstance(each, Prediction))
    return Predictions(str(out), done, failed, notes, seconds)


def written(places: Places, image: Tensor, logits: Tensor, threshold: float, overwrite: bool) -> Prediction:
    """The result of one image from its logits `O H W`. All that is written for an image is written here."""
    mask = predicted_classes(logits[None], threshold)[0].to(torch.uint8)
    defects = find_defects(mask.numpy(), defect_score(logits).numpy())
    height, width = mask.shape
    found = Prediction(str(places.image), width, height, threshold if len(logits) == 1 else None, tuple(defects))
    write(places, _mask_image(mask, binary=len(logits) <= 2), overlay(image, mask), found.to_dict(), overwrite)
    return found


def _mask_image(mask: Tensor, *, binary: bool) -> "Image":
    """0 and 255; or, for more classes, a palette image of their indices, which `open_data` reads back."""
    if binary:
        return _pil().fromarray(mask.numpy() * np.uint8(255))
    picture = _pil().fromarray(mask.numpy())
    picture.putpalette([0, 0, 0, *(part for colour in _COLOURS for part in colour)][:768])
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
