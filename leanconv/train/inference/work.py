"""The work of `predict`: from the paths of images to their results, one after the other, read ahead and in batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.files import draft_on_demand
from leanconv.running import evaluating
from leanconv.runs import RunFolder
from leanconv.text import one_line
from leanconv.train.data.ahead import read_ahead
from leanconv.train.data.image_reader import Everything, ImageReader
from leanconv.train.data.reduce import enlarge_logits, reduce_image
from leanconv.train.data.references import side_of
from leanconv.train.inference.behind import behind
from leanconv.train.inference.predict_classes import Failed, opened_classifier
from leanconv.train.inference.score import load_decided
from leanconv.train.inference.serving import Left, Serve
from leanconv.train.inference.tiles import TooLarge, check_logits, enough_memory, logits_alike
from leanconv.train.inference.written import Places
from leanconv.train.recipe import Recipe
from leanconv.train.tasks.components import scipy_image
from leanconv.train.tasks.decision import Decision

Read = tuple[Path, Tensor | BadInput]  # an image, or why it cannot be read
Look = Callable[[Sequence[Tensor]], list[Tensor]]  # images of one size -> their logits
Write = Callable[..., Any]  # (places, image, logits, decision=, overwrite=, drafts=) -> the result of one image
Work = Callable[[Iterable[Path]], Iterator[Any]]


@dataclass(frozen=True)
class Asked:
    """The options of `predict`, checked."""

    threshold: float | str | None = None
    min_area: int | None = None
    merge: int | None = None
    side: int | None = None
    tile: int | None = None
    overlap: int | None = None
    batch: int | None = None
    bits: int | None = None
    device: str = "cpu"
    trust_code: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.bits is not None and not 8 <= self.bits <= 16:
            raise BadInput(f"bits={self.bits}: from 8 to 16")

    def reader(self, folder: RunFolder | None, everything: Everything | None = None) -> ImageReader:
        """A reader of images as the run takes them. `everything`: all images, if they are known."""
        return ImageReader(self.bits or (folder.read_model().bits if folder else None), everything)

    @property
    def for_masks(self) -> dict[str, float | str | None]:
        """The options that a classifier has no use for."""
        names = ("threshold", "min_area", "merge", "side", "tile", "overlap", "batch")
        return {name: getattr(self, name) for name in names}


def is_classifier(folder: RunFolder | None) -> bool:
    """Whether a run tells whole images apart."""
    return folder is not None and folder.read_model().task == "classify"


def no_masks(run: str, **settings: float | str | None) -> None:
    """Raise BadInput for options that a classifier cannot use."""
    for name, value in settings.items():
        if value is not None:
            raise BadInput(f"{name}={value} is for masks; {run} names the class of whole images, leave it out")


@contextmanager
def opened(
    model: str | Path | nn.Module,
    out: Path,
    asked: Asked,
    reader: ImageReader,
    write: Write,
    *,
    serve: Serve,
    left: Left,
) -> Iterator[Work]:
    """A function from paths to the results of the images, in order, each written before it is given.

    `write` makes and writes the result of one image with a mask. A class is a result too; the list of classes is the
    caller's to write.
    """
    folder = None if isinstance(model, nn.Module) else RunFolder.open(model)
    if folder is not None and is_classifier(folder):
        no_masks(str(model), **asked.for_masks)
        with opened_classifier(folder, out, reader, serve, left, asked) as guesses:
            yield guesses
        return
    decision, side = Decision(), asked.side
    if folder is not None:
        model, decision = load_decided(folder, trust_code=asked.trust_code)
        if side is None and folder.recipe.is_file():
            side = side_of(Recipe.read(folder.recipe).data)
    assert isinstance(model, nn.Module)
    decision = decision.asked(asked.threshold, asked.min_area, asked.merge)
    given = {"tile": asked.tile, "overlap": asked.overlap, "batch": asked.batch}
    tiles = {name: value for name, value in given.items() if value is not None}
    scipy_image()  # which takes as long as many pictures: imported before the first
    served = serve(model.to(torch.device(asked.device)), folder.engine if folder else None, left)
    with served as fast, evaluating(fast), draft_on_demand(out) as drafts:
        look = partial(_logits, fast, side=side, tiles=tiles)
        written = partial(write, decision=decision, overwrite=asked.overwrite, drafts=drafts)
        yield partial(_predicted, out=out, reader=reader, look=look, write=written, batch=asked.batch or 1, left=left)


def _predicted(
    paths: Iterable[Path],
    *,
    out: Path,
    reader: ImageReader,
    look: Look,
    write: Callable[[Places, Tensor, Tensor], Any],
    batch: int,
    left: Left,
) -> Iterator[Any]:
    """Predict and write all usable images, in order. One is written while the network looks at the next."""
    read = left.counted(read_ahead(paths, lambda path: reader.read(path, str(path))))

    def made(path: Path, image: Tensor, logits: Tensor | Failed) -> Any:
        if isinstance(logits, Failed):
            return logits
        try:
            with enough_memory():
                return write(Places.of(path, out), image, logits)
        except TooLarge as error:
            return Failed(str(path), one_line(f"{path}: {error}"))

    def steps() -> Iterator[Callable[[], Any]]:
        for group in _alike(read, batch):
            images = [image for _, image in group if isinstance(image, Tensor)]
            if not images:
                yield from (partial(Failed, str(path), str(error)) for path, error in group)
                continue
            yield from (partial(made, *each) for each in _looked(group, images, look))

    yield from behind(steps())


def _alike(read: Iterable[Read], batch: int) -> Iterator[list[Read]]:
    """Successive images of one size, at most `batch` together; an image that cannot be read is alone."""
    group: list[Read] = []
    for path, image in read:
        alike = group and isinstance(image, Tensor) and group[0][1].shape == image.shape  # type: ignore[union-attr]
        if group and not (alike and len(group) < batch):
            yield group
            group = []
        if isinstance(image, Tensor):
            group.append((path, image))
        else:
            yield [(path, image)]
    if group:
        yield group


def _looked(
    group: Sequence[Read], images: Sequence[Tensor], look: Look
) -> Iterator[tuple[Path, Tensor, "Tensor | Failed"]]:
    """Path, image and logits of each; or why memory does not hold them."""
    try:
        with enough_memory():
            found: list[Any] = list(look(images))
    except TooLarge as error:
        found = [Failed(str(path), one_line(f"{path}: {error}")) for path, _ in group]
    yield from zip((path for path, _ in group), images, found, strict=True)


def _logits(model: nn.Module, images: Sequence[Tensor], *, side: int | None, tiles: dict[str, int]) -> list[Tensor]:
    """Logits `O H W` of images of one size, at their own size."""
    height, width = images[0].shape[-2:]
    found = logits_alike(model, [reduce_image(image, side) if side else image for image in images], **tiles)
    check_logits(len(found[0]), height, width)
    return [enlarge_logits(logits, height, width) for logits in found]
