"""Watching a folder: each image that arrives is predicted once nobody writes to it any more."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from leanconv.errors import BadInput
from leanconv.runs import RunFolder
from leanconv.train.data.image_files import images_in
from leanconv.train.inference.predict import Prediction, written
from leanconv.train.inference.predict_classes import Failed, Guess, Guesses, list_of
from leanconv.train.inference.serving import Left, Serve, plainly
from leanconv.train.inference.tables import check_tables, update_tables
from leanconv.train.inference.work import Asked, is_classifier, opened

# Seconds between two looks into the folder.
EVERY_S = 0.5


class Arrivals:
    """The images of a folder that are complete: size and time of the last change were the same at two looks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        self._given: dict[Path, tuple[int, int]] = {}

    def look(self) -> list[Path]:
        """The images that are complete since the last look, oldest first. One that changes later comes again.

        Raises: BadInput if the folder is gone.
        """
        now = {path: state for path in self._images() if (state := _state(path)) is not None}
        ready = [path for path, state in now.items() if self._seen.get(path) == state != self._given.get(path)]
        self._given = {path: state for path, state in self._given.items() if path in now}
        self._given.update({path: now[path] for path in ready})
        self._seen = now
        return sorted(ready, key=lambda path: (now[path][1], path))

    def _images(self) -> list[Path]:
        try:
            if os.path.isdir(self.folder):
                return images_in(self.folder).images
        except OSError as error:
            raise BadInput(f"{self.folder}: the watched folder cannot be read: {error.strerror or error}") from error
        raise BadInput(f"{self.folder}: the watched folder does not exist (any more)")


def watch(
    model: str | Path | nn.Module,
    folder: str | Path,
    out: str | Path,
    asked: Asked,
    *,
    serve: Serve = plainly,
    every_s: float = EVERY_S,
) -> Iterator[Any]:
    """Predict the images in a folder and all that arrive there, without end; give each result when it is written.

    A result is a `Prediction`, a `Guess` or a `Failed`. An image that changes is predicted again. A classifier's
    `predictions.json` holds all results so far.

    Args:
        model, out: as for `predict`.
        every_s: seconds between two looks into the folder.
    Raises: BadInput if the folder does not exist or disappears, or holds `out` itself.
    """
    arrivals, out = Arrivals(Path(folder)), Path(out)
    arrivals.look()  # is it there?
    if os.path.realpath(out) == os.path.realpath(folder):
        raise BadInput(f"{out} is the watched folder itself: choose another --out")
    run = None if isinstance(model, nn.Module) else RunFolder.open(model)
    reader, left = asked.reader(run), Left(None)
    guesses: dict[str, Guess] = {}
    if not is_classifier(run):
        check_tables(out, asked.overwrite)
    with opened(model, out, asked, reader, written, serve=serve, left=left) as work:
        while True:
            looked = time.monotonic()
            ready = arrivals.look()
            try:
                for path in ready:
                    for result in _one(work, path):
                        if isinstance(result, Guess):
                            guesses[result.image] = result
                        elif isinstance(result, Prediction):
                            update_tables(out, [result], asked.overwrite)
                        yield result
            finally:  # also of what Ctrl-C leaves
                if ready and is_classifier(run):
                    Guesses(str(list_of(out)), tuple(guesses.values()), (), tuple(reader.notes())).write()
            # Never sooner: a file whose size stood still for a moment only may be half of itself.
            time.sleep(max(0.0, looked + every_s - time.monotonic()))


def _one(work: Any, path: Path) -> Iterator[Prediction | Guess | Failed]:
    """The result of one image. A file in the way is this image's fault alone."""
    try:
        yield from list(work([path]))
    except BadInput as error:
        yield Failed(str(path), str(error))


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None for a file that is gone or empty."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if found.st_size else None
