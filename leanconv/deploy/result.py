"""The result of `export`: the file, and its verified error against the model."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from leanconv.deploy.axes import Sizes
from leanconv.deploy.int8.export import Lost
from leanconv.table import table

# Largest difference between a task metric (IoU, Dice, top-1) of the file and of the model.
METRIC_TOLERANCE = 0.002


@dataclass(frozen=True)
class Verified:
    """The largest error of the file against the model at these sizes."""

    sizes: Sizes
    absolute: float
    relative: float
    allowed: float


@dataclass(frozen=True)
class Exported:
    """A file that computes the same as the model, with the proof.

    Attributes:
        files: all files of the export, the main file first.
        inputs, outputs: names in the file (torch.export: names in the graph).
        verified: one entry per verified size. `relative` is the error relative to its channel or group.
        metrics: name -> (the model's, the file's), if a `check` was given.
        int8: what the file lost, if it is in int8. `verified` is then of the float file that it was made from.
    """

    path: Path
    format: str
    files: tuple[Path, ...]
    dynamic: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    verified: tuple[Verified, ...]
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)
    int8: Lost | None = None

    @property
    def max_error(self) -> float:
        """The largest absolute error."""
        return max(each.absolute for each in self.verified)

    @property
    def max_relative_error(self) -> float:
        """The largest error relative to the size of its channel or group."""
        return max(each.relative for each in self.verified)

    @property
    def tolerance(self) -> float:
        """The largest relative error that is allowed."""
        return max(each.allowed for each in self.verified)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "format": self.format,
            "files": {str(path): path.stat().st_size for path in self.files if path.exists()},
            "dynamic": list(self.dynamic),
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "verified": [
                v.sizes.to_dict() | {"absolute": v.absolute, "relative": v.relative, "allowed": v.allowed}
                for v in self.verified
            ],
            "tolerance": self.tolerance,
            "max_error": self.max_error,
            "max_relative_error": self.max_relative_error,
            "metrics": {name: {"model": a, "file": b} for name, (a, b) in self.metrics.items()},
        } | ({"int8": self.int8.to_dict()} if self.int8 else {})

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.files if path.exists())
        rows = [[str(v.sizes), f"{v.relative:.1e}", f"{v.allowed:.1e}", f"{v.absolute:.1e}"] for v in self.verified]
        open_axes = ", ".join(self.dynamic) or "none"
        which = ". Against the model, before int8:" if self.int8 else ". Against the model:"
        text = table(
            ["input", "relative error", "allowed", "absolute error"],
            rows,
            title=f"{self.path} ({self.format}, {size / 1e6:.1f} MB), dynamic axes: {open_axes}{which}",
        )
        if self.metrics:
            lost, most = ("loss", self.int8.limit) if self.int8 else ("difference", METRIC_TOLERANCE)
            lines = [
                [name, f"{a:.4f}", f"{b:.4f}", f"{a - b if self.int8 else abs(a - b):.1e}", f"{most:.1e}"]
                for name, (a, b) in self.metrics.items()
            ]
            text += "\n" + table(["metric", "model", "file", lost, "allowed"], lines)
        if self.int8:
            text += f"\n{self.int8}"
        scripts = [str(path) for path in self.files if path.suffix == ".py"]
        if scripts:
            text += f"\nRun it without leanconv: python {shlex.quote(scripts[0])} IMAGE_OR_FOLDER..."
        return text
