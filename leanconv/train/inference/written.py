"""The files of a prediction, and whether existing files there belong to an earlier one.

A picture that `predict` wrote ends with a PNG text chunk: the hash of all bytes before it. A picture that was edited
since then is somebody's work. A list is known by its keys, and names its image.
"""

import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from leanconv.errors import BadInput
from leanconv.files import Held, Lock, NoLocks, json_text, read_bytes, read_json, write_together
from leanconv.train.data.image_reader import listing

if TYPE_CHECKING:
    from PIL.Image import Image

_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk of every PNG
_KEYS = {"image", "width", "height", "threshold", "defect_area_px", "defects"}
_LONGEST_STEM = 255 - len("_overlay.png")  # bytes: file systems take 255 of a name
_WRITING, _PATIENCE_S = ".predict.lock", 60.0
# Of an overlay of 200x200 pixels level 1 takes 4 ms, and level 6 makes it 4 % smaller in 11 ms, a small network's time.
_COMPRESSION = 1
_LIST_KEYS = {"out", "images", "failed"}


@dataclass(frozen=True)
class Places:
    """The paths of an image's mask, overlay and list of defects."""

    image: Path
    mask: Path
    overlay: Path
    defects: Path

    @classmethod
    def of(cls, image: Path, out: Path) -> Self:
        """Names by the image's stem; its beginning and a hash if it is too long."""
        stem = _fitting(image.stem)
        return cls(image, out / f"{stem}_mask.png", out / f"{stem}_overlay.png", out / f"{stem}.json")

    def obstacle(self) -> str:
        """An existing file that is no earlier prediction of this image, and why; "" for none."""
        for path in (self.mask, self.overlay):
            if os.path.lexists(path) and not _is_ours(path):
                return f"{path} was not made by predict, or was changed since"
        if not os.path.lexists(self.defects):
            return ""
        found = _object(self.defects)
        if not found.keys() >= _KEYS:
            return f"{self.defects} was not made by predict"
        same = os.path.abspath(str(found["image"])) == os.path.abspath(self.image)
        return "" if same else f"{self.defects} is the prediction of {str(found['image'])[:200]}"


def _fitting(stem: str) -> str:
    encoded = os.fsencode(stem)
    if len(encoded) <= _LONGEST_STEM:
        return stem
    end = "~" + hashlib.sha256(encoded).hexdigest()[:8]
    while len(os.fsencode(stem)) > _LONGEST_STEM - len(end):
        stem = stem[:-1]
    return stem + end


def check_free(places: Iterable[Places], overwrite: bool) -> None:
    """Raise BadInput rather than overwrite a file that is no earlier prediction of the same image."""
    obstacles = [] if overwrite else [text for each in places if (text := each.obstacle())]
    if obstacles:
        raise BadInput(f"{listing(obstacles)}: give another --out, or say --overwrite")


def write(
    places: Places, mask: "Image", overlay: "Image", found: dict[str, Any], overwrite: bool, drafts: Callable[[], Path]
) -> None:
    """Write all three files of one prediction; of two concurrent predictions, one's three files remain.

    `drafts` gives a draft of their folder.

    Raises: BadInput where they cannot be written, or a file would be lost that has come since.
    """
    with alone(places.defects):
        check_free([places], overwrite)
        files: dict[Path, bytes | str] = {
            places.mask: png(mask),
            places.overlay: png(overlay),
            places.defects: json_text(found),
        }
        write_together(files, drafts())


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Write in the folder of a file, which is created, while no other predict does. Raises BadInput."""
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(Lock(path.parent / _WRITING, patience_s=_PATIENCE_S))
        except Held as error:
            raise BadInput(f"{path}: another predict keeps this folder to itself; try again") from error
        except NoLocks:
            pass
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error
        yield


def check_list(path: Path, overwrite: bool) -> None:
    """Raise BadInput rather than overwrite a file that is no earlier list of a classifier's predictions."""
    if not overwrite and os.path.lexists(path) and not _object(path).keys() >= _LIST_KEYS:
        raise BadInput(f"{path} was not made by predict: give another --out, or say --overwrite")


def png(picture: "Image") -> bytes:
    """The PNG file of an image, with a mark that any change invalidates."""
    made = io.BytesIO()
    picture.save(made, format="PNG", compress_level=_COMPRESSION)
    content = made.getvalue().removesuffix(_END)
    return content + _mark(content) + _END


def _mark(content: bytes) -> bytes:
    """A PNG text chunk with the hash of the file up to here."""
    said = b"tEXtleanconv predict\0" + hashlib.sha256(content).hexdigest().encode()
    return (len(said) - 4).to_bytes(4, "big") + said + zlib.crc32(said).to_bytes(4, "big")


def _is_ours(path: Path) -> bool:
    try:
        content = read_bytes(path)
    except BadInput:
        return False
    rest = content.removesuffix(_END)
    before = rest[: len(rest) - len(_mark(b""))]
    return len(rest) < len(content) and rest[len(before) :] == _mark(before)


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty for anything else."""
    try:
        found = read_json(path)
    except BadInput:
        return {}
    return found if isinstance(found, dict) else {}
