"""What a run folder keeps of its engines: for each device and shape, the fastest one, and the files that open it."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from leanconv.errors import BadInput
from leanconv.files import read_json, write_json
from leanconv.measure import describe
from leanconv.version import __version__

FORMAT = 1
# Shapes and devices that a run folder keeps. The oldest goes first.
MOST_KEPT = 24
# Another process may be writing a younger folder.
_UNFINISHED_S = 3600.0
_LIBRARIES = ("openvino", "onnxruntime", "halide")


@dataclass(frozen=True)
class Choice:
    """The content of a choice.json.

    Attributes:
        spent_s: seconds that plain PyTorch took so far, or since the last race that decided nothing.
        undecided: races that decided nothing.
        engine: the fastest engine, or "" before a race that decided.
        eager_ms, engine_ms: medians of a call.
        open_s: seconds of one core that opening it took the first time, or 0.
        folder: the folder of the engine's files beside choice.json, or "".
        files: name -> SHA-256 of each.
    """

    spent_s: float = 0.0
    engine: str = ""
    eager_ms: float = 0.0
    engine_ms: float = 0.0
    open_s: float = 0.0
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    undecided: int = 0


class Kept:
    """The choice for one model, device and shape. `root`: the run's folder for them, or None to keep nothing."""

    def __init__(
        self, root: Path | None, weights: str, shape: torch.Size, dtype: torch.dtype, engine: str = "auto"
    ) -> None:
        """`weights`: `runs.digest.of_model` of the model; `engine`: what was asked for, whose choices are apart."""
        facts = {
            **describe("cpu"), "model": weights, "shape": list(shape), "dtype": str(dtype), "leanconv": __version__,
            "engine": engine,
            "arithmetic": os.environ.get("LEANCONV_ARITHMETIC", ""), **{name: _version(name) for name in _LIBRARIES},
        }  # fmt: skip
        self.facts = facts
        self.shape = shape
        name = "x".join(map(str, shape)) + "-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        self.folder = None if root is None else root / name
        self.why_not = "" if root is not None else "there is no run folder"

    @property
    def place(self) -> str:
        """The run's folder of engines."""
        return str(self.folder.parent) if self.folder else ""

    @property
    def remark(self) -> str:
        """Where the choice is kept, or why it is not, for the end of a line."""
        return f"; not kept: {self.why_not}" if self.why_not else f"; kept in {self.place}"

    def read(self) -> Choice:
        """The stored choice; an empty one if there is none, or it is damaged or another's."""
        if self.folder is None:
            return Choice()
        try:
            stored = read_json(self.folder / "choice.json")
            if stored["format"] != FORMAT or stored["facts"] != self.facts:
                return Choice()
            found = Choice(**stored["choice"])
            numbers = [float(each) for each in (found.spent_s, found.eager_ms, found.engine_ms, found.open_s)]
            known = re.fullmatch(r"[a-z_]*", found.engine)
            # `store` removes this folder: it must be one that it made, and never a way out of this one.
            inside = not found.folder or re.fullmatch(rf"{re.escape(found.engine)}-\w+", found.folder, re.ASCII)
            whole = type(found.undecided) is int and 0 <= found.undecided < 1000
            right = known and inside and whole and all(0 <= number < 1e12 for number in numbers)
            return found if right else Choice()
        except (BadInput, KeyError, TypeError, ValueError, OverflowError):
            return Choice()

    def write(self, choice: Choice) -> None:
        """Store a choice. Without permission nothing is stored, and `why_not` says so."""
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "choice.json", {"format": FORMAT, "facts": self.facts, "choice": asdict(choice)})
            _prune(self.folder.parent)
        except (BadInput, OSError) as error:
            self.why_not = str(error)

    def store(self, choice: Choice, store: Callable[[Path], object] | None) -> None:
        """Store a choice with the files of its engine. `store` writes them into a folder."""
        if self.folder is None or store is None:
            return self.write(choice)
        before = self.read().folder
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix=f"{choice.engine}-", dir=self.folder))
            try:
                store(place)
            except Exception as error:  # an engine's own error: the choice is still worth keeping
                shutil.rmtree(place, ignore_errors=True)
                self.why_not = f"{choice.engine} cannot be stored: {error}"
                return self.write(choice)
            files = {path.name: _hash(path) for path in sorted(place.iterdir())}
        except OSError as error:
            self.why_not = str(error)
            return None
        self.write(replace(choice, folder=place.name, files=files))
        self._remove_others(place.name, before)
        return None

    def _remove_others(self, kept: str, before: str) -> None:
        """Remove the engine that was kept before, and what killed processes have left."""
        assert self.folder is not None  # its caller has just written there
        from leanconv.engine.candidates import CANDIDATES  # loaded already: one of them was stored

        for path in self.folder.iterdir():
            ours = path.is_dir() and not path.is_symlink() and path.name.partition("-")[0] in CANDIDATES
            if ours and path.name != kept and (path.name == before or _age_s(path) > _UNFINISHED_S):
                shutil.rmtree(path, ignore_errors=True)

    def place_of(self, choice: Choice) -> Path | None:
        """The folder of the stored engine, or None if its files are gone or changed."""
        if self.folder is None or not choice.folder:
            return None
        place = self.folder / choice.folder
        try:
            same = {path.name: _hash(path) for path in sorted(place.iterdir())} == choice.files
        except OSError:
            return None
        return place if same else None


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def _prune(root: Path) -> None:
    """Remove the oldest choices beyond MOST_KEPT."""
    found = sorted(root.glob("*/choice.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[MOST_KEPT:]:
        shutil.rmtree(path.parent, ignore_errors=True)
