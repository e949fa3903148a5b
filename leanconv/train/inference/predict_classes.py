"""Prediction of classes: for each image the most probable ones, printed and written to one JSON file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadCheckpoint, BadInput
from leanconv.files import write_json
from leanconv.runs import RunFolder
from leanconv.table import table
from leanconv.train.data.augment import to_float
from leanconv.train.data.image_reader import ImageReader
from leanconv.train.data.labelled import judge_shape, prepared
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

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON: also what the file holds."""
        return {
            "out": self.out,
            "images": [guess.to_dict() for guess in self.done],
            "failed": [{"image": image, "error": reason} for image, reason in self.failed],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = []
        for guess in self.done:
            next_best = ", ".join(f"{name} {score:.3f}" for name, score in guess.top[1:3])
            rows.append([guess.image, guess.top[0][0], f"{guess.top[0][1]:.4f}", next_best])
        note = f"{len(self.done)} of {len(self.done) + len(self.failed)} images, written to {self.out}"
        return table(["image", "class", "score", "next"], rows, note=note)


def predict_classes(
    folder: RunFolder,
    paths: Iterable[Path],
    out: Path,
    reader: ImageReader,
    *,
    device: str,
    trust_code: bool,
    overwrite: bool = False,
    note: str = "",
) -> Guesses:
    """Write `predictions.json` to the folder `out`: class and score of each image that can be read.

    Raises: BadInput for a run without its image size, or a file of that name that is no list of predictions;
        BadCheckpoint for a run whose classes do not fit.
    """
    check_list(out / "predictions.json", overwrite)
    classes, size = folder.read_model().classes, run_size(folder)
    model = folder.load_model(trust_code=trust_code).to(torch.device(device))
    done: list[Guess] = []
    failed: list[tuple[str, str]] = []
    waiting: list[tuple[Path, Tensor]] = []
    batch = max(1, min(_BATCH, BATCH_PIXELS // size**2))
    for path in paths:
        try:
            image = reader.read(path, str(path))
            judge_shape(image.shape[1], image.shape[2], size, str(path))
            waiting.append((path, prepared(image, size)))
        except BadInput as error:
            failed.append((str(path), str(error)))
        if len(waiting) == batch:
            done += _guesses(model, classes, waiting)
            waiting = []
    done += _guesses(model, classes, waiting)
    found = Guesses(
        str(out / "predictions.json"), tuple(done), tuple(failed), tuple(filter(None, [note, *reader.notes()]))
    )
    write_json(found.out, found.to_dict())
    return found


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
