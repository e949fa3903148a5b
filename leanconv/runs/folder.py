"""RunFolder: the files that training writes and every later command reads. No pickle anywhere."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch import nn

from leanconv.errors import BadCheckpoint, BadInput, LeanconvError, MissingExtra, UntrustedCode
from leanconv.files import check_run, read_json, write_json
from leanconv.registry import parse
from leanconv.runs.kinds import Reference, build, read
from leanconv.runs.lock import in_use
from leanconv.runs.weights import load_weights, save_weights
from leanconv.version import __version__

if TYPE_CHECKING:
    from leanconv.convert import Plan

Read = TypeVar("Read")

FORMAT = 1
TASKS = ("segment", "classify")
_LARGEST = 4 * 2**20  # bytes of a model.json. A ResNet-152 with every layer swapped takes 20 kB


class RunFolder:
    """The paths of one run's files. They need not exist yet.

    Attributes:
        recipe: recipe.toml, the training settings.
        model_json: model.json, the model's reference and swaps.
        weights: model.safetensors, the best weights.
        history: history.csv, a row per epoch.
        metrics: metrics.json, the final scores and thresholds.
        events: events/, for TensorBoard.
        report: report.html.
        export: export/, the exported files.
        engine: engine/, what prediction found to be fastest on each device.
        last: last/, the checkpoint from which a killed run resumes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.model_json = self.path / "model.json"
        self.weights = self.path / "model.safetensors"
        self.history = self.path / "history.csv"
        self.metrics = self.path / "metrics.json"
        self.events = self.path / "events"
        self.report = self.path / "report.html"
        self.export = self.path / "export"
        self.engine = self.path / "engine"
        self.last = self.path / "last"

    @property
    def results(self) -> tuple[Path, ...]:
        """The files that a finished training leaves."""
        return self.weights, self.history, self.metrics

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that a run may contain."""
        return self.recipe, self.model_json, *self.results, self.events, self.report, self.export, self.last

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open an existing run folder. Raises BadInput if the path is none."""
        check_run(path)
        return cls(path)

    def write_model(
        self,
        reference: str,
        *,
        swaps: "Plan | Iterable[tuple[str, str]]" = (),
        task: str = "",
        classes: Sequence[str] = (),
        bits: int | None = None,
    ) -> Path:
        """Write model.json: the model's reference, and its swaps (a `Plan`, or pairs of name and operator).

        Args:
            task, classes: the meaning of the model's outputs, if known.
            bits: bits per channel that its 16-bit images use.
        Raises: BadInput for a reference that names no model or another run folder. UnknownName for an unknown operator
            or option.
        """
        found = read(reference)
        if found.kind == "path":
            raise BadInput(
                f"{reference!r} cannot be used in a model.json: it names no model; give the model's own reference"
            )
        if found.kind == "code":  # the run folder may be read from anywhere
            reference = reference.replace(found.name, str(Path(found.name).resolve()), 1)
        from leanconv.convert import Plan

        pairs = [(s.name, str(s.to)) for s in swaps.swapped] if isinstance(swaps, Plan) else list(swaps)
        for _, to in pairs:
            parse(to)
        return write_json(
            self.model_json,
            {
                "format": FORMAT,
                "leanconv": __version__,
                "reference": reference,
                "swaps": [list(pair) for pair in pairs],
                **({"task": task, "classes": list(classes)} if task else {}),
                **({"bits": bits} if bits else {}),
            },
        )

    def read_model(self) -> "ModelFile":
        """Read and check model.json without running its code. Raises BadCheckpoint with the reason."""
        return ModelFile.read(self.model_json)

    def build_model(self, *, trust_code: bool = False) -> nn.Module:
        """Build the run's network with fresh weights, in train mode. Nothing is downloaded.

        Raises: UntrustedCode if model.json names a Python file, BadCheckpoint if it is unusable.
        """
        stored = self.read_model()
        try:
            model = build(stored.reference, from_file=True, trust_code=trust_code)
            if stored.swaps:
                from leanconv.convert import Plan, Swap, apply_  # not read with every run

                apply_(model, Plan(Swap(name, to, None, None, "") for name, to in stored.swaps), init="fresh")
        except (UntrustedCode, MissingExtra):
            raise
        except LeanconvError as error:
            raise BadCheckpoint(f"{self.model_json}: the model cannot be built: {error}") from error
        return model

    def load_model(self, *, trust_code: bool = False) -> nn.Module:
        """Load the run's network with its weights, in eval mode on the CPU.

        Raises: UntrustedCode if model.json names a Python file, BadCheckpoint if a file is damaged.
        """
        model = self.build_model(trust_code=trust_code)
        if who := in_use(self.path):
            warnings.warn(f"{self.path} is being written by {who}: these are its weights so far", stacklevel=2)
        load_weights(model, self.weights)
        return model.eval()

    def load_with(self, read: Callable[[], Read], *, trust_code: bool = False) -> tuple[nn.Module, Read]:
        """Return the network of `load_model` and the result of `read`, both from the same moment.

        A run in training replaces its weights, and deletes the older scores before that.
        """
        before = read()
        while True:
            model, after = self.load_model(trust_code=trust_code), read()
            if after == before:
                return model, after
            before = after

    def save_model(self, model: nn.Module) -> Path:
        """Write the model's weights to `weights`, atomically."""
        return save_weights(model, self.weights)

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ModelFile:
    """The content of model.json.

    Attributes:
        reference: the model's reference.
        swaps: pairs of layer name and operator string.
        task: `segment`, `classify`, or "" if unknown.
        classes: names of the classes.
        bits: range of the 16-bit training images, or None.
    """

    reference: Reference
    swaps: tuple[tuple[str, str], ...]
    task: str = ""
    classes: tuple[str, ...] = ()
    bits: int | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a model.json from any source. Raises BadCheckpoint."""
        try:
            if not path.is_file():
                raise BadInput("the file does not exist; has the run written a model yet?")
            if path.stat().st_size > _LARGEST:
                raise BadInput(f"it has {path.stat().st_size:,} bytes; a model.json has at most {_LARGEST:,}")
            return cls._checked(read_json(path))
        except LeanconvError as error:
            raise BadCheckpoint(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error

    @classmethod
    def _checked(cls, stored: Any) -> Self:
        if not isinstance(stored, dict):
            raise BadInput(f"holds {type(stored).__name__}, not an object with format and reference")
        if isinstance(stored.get("format"), int) and stored["format"] > FORMAT:
            raise BadInput(f"has format {stored['format']}, this version reads {FORMAT}; update leanconv")
        if stored.get("format") != FORMAT or not isinstance(stored.get("reference"), str):
            raise BadInput(
                f"needs format={FORMAT} and a reference, got {', '.join(sorted(map(str, stored))[:8]) or '{}'}"
            )
        reference = read(stored["reference"])
        if reference.kind == "path":
            raise BadInput(f"its reference {stored['reference'][:200]!r} names a path, not a model")
        swaps = stored.get("swaps", [])
        pairs = isinstance(swaps, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in swaps)
        if not pairs or not all(isinstance(word, str) for pair in swaps for word in pair):
            raise BadInput("swaps must be a list of pairs [layer, operator]")
        task, classes = stored.get("task", ""), stored.get("classes", [])
        if task not in ("", *TASKS):
            raise BadInput(f"task {str(task)[:40]!r}: one of {', '.join(TASKS)}")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise BadInput("classes must be a list of names")
        bits = stored.get("bits")
        if bits is not None and (type(bits) is not int or not 8 <= bits <= 16):
            raise BadInput(f"bits {str(bits)[:40]!r}: from 8 to 16")
        return cls(reference, tuple((name, to) for name, to in swaps), task, tuple(classes), bits)
