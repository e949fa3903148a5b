"""Prediction of classes: for each image the most probable ones, printed and written to one JSON file."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.files import write_json
from leanconv.runs import RunFolder
from leanconv.table import table
from leanconv.train.data.ahead import read_ahead
from leanconv.train.data.augment import to_float
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.labelled import judge_shape, prepared
from leanconv.train.inference.serving import Left, Serve
from leanconv.train.inference.written import check_list
from leanconv.train.tasks.classify import BATCH_PIXELS
from leanconv.train.tasks.task import run_size

TOP = 5
_BATCH = 32


@dataclass(frozen=True)
class Guess:
    """The classes of an image: (class, probability) pairs, the most probable first."""

    image: str
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return f"{self.image}  {self.top[0][0]}  {self.top[0][1]:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        name, score = self.top[0]
        top = [{"class": each, "score": value} for each, value in self.top]
        return {"image": self.image, "class": name, "score": score, "top": top}


@dataclass(frozen=True)
class Guesses:
    """The results of `predict` in `out`, the unusable images with the reasons, and remarks on how others were read."""

    out: str
    done: tuple[Guess, ...]
    failed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def write(self) -> None:
        """Write the list to its file."""
        write_json(self.out, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: also what the file holds."""
        return {
            "out": self.out,
            "images": [guess.to_dict() for guess in self.done],
            "failed": [{"image": image, "error": reason} for image, reason in self.failed],
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        rows = []
        for guess in self.done:
            next_best = ", ".join(f"{name} {score:.3f}" for name, score in guess.top[1:3])
            rows.append([guess.image, guess.top[0][0], f"{guess.top[0][1]:.4f}", next_best])
        note = f"{len(self.done)} of {len(self.done) + len(self.failed)} images, written to {self.out}"
        note += pace(len(self.done), self.seconds)
        return table(["image", "class", "score", "next"], rows, note=note)


@dataclass(frozen=True)
class Failed:
    """An image without a result, and why."""

    image: str
    reason: str

    def __str__(self) -> str:
        return self.reason

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"image": self.image, "error": self.reason}


class Options(Protocol):
    """What a classifier takes of the options of `predict`."""

    @property
    def device(self) -> str: ...
    @property
    def trust_code(self) -> bool: ...
    @property
    def overwrite(self) -> bool: ...


def list_of(out: Path) -> Path:
    """The file of a classifier's predictions in a folder."""
    return out / "predictions.json"


@contextmanager
def opened_classifier(
    folder: RunFolder, out: Path, reader: ImageReader, serve: Serve, left: Left, asked: Options
) -> Iterator[Callable[[Iterable[Path]], Iterator[Guess | Failed]]]:
    """A function from paths to the class of each image that can be read.

    Raises: BadInput for a run without its image size, or a list in `out` that is no list of predictions; BadCheckpoint
        for a run whose classes do not fit.
    """
    check_list(list_of(out), asked.overwrite)
    classes, size = folder.read_model().classes, run_size(folder)
    model = folder.load_model(trust_code=asked.trust_code).to(torch.device(asked.device))
    batch = max(1, min(_BATCH, BATCH_PIXELS // size**2))

    def read(path: Path) -> Tensor:
        image = reader.read(path, str(path))
        judge_shape(image.shape[1], image.shape[2], size, str(path))
        return prepared(image, size)

    def guesses(paths: Iterable[Path]) -> Iterator[Guess | Failed]:
        waiting: list[tuple[Path, Tensor]] = []
        for path, image in left.counted(read_ahead(paths, read)):
            if isinstance(image, BadInput):
                yield Failed(str(path), str(image))
                continue
            waiting.append((path, image))
            if len(waiting) == batch:
                yield from _guesses(fast, classes, waiting)
                waiting = []
        yield from _guesses(fast, classes, waiting)

    with serve(model, folder.engine, left) as fast:
        yield guesses


def pace(images: int, seconds: float) -> str:
    """For the end of a line: how many images a second."""
    return f"; {images / seconds:.3g} images/s" if images and seconds > 0 else ""


@torch.no_grad()
def _guesses(model: nn.Module, classes: Sequence[str], pictures: Sequence[tuple[Path, Tensor]]) -> list[Guess]:
    if not pictures:
        return []
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits = model(to_float(torch.stack([square for _, square in pictures]).to(device)))
    if logits.shape[1:] != (len(classes),):
        raise BadCheckpoint(
            f"the model gives {tuple(logits.shape[1:])} numbers an image, model.json {len(classes)} names"
        )
    scores, places = logits.float().softmax(1).cpu().topk(min(TOP, len(classes)))
    return [
        Guess(str(path), tuple((classes[k], score) for k, score in zip(row.tolist(), values.tolist(), strict=True)))
        for (path, _), row, values in zip(pictures, places, scores, strict=True)
    ]
