"""Asked: what a user wants of `leanconv lean`, checked before anything is loaded."""

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from leanconv.errors import BadCheckpoint, BadInput, UnknownName
from leanconv.registry import parse
from leanconv.runs.kinds import read
from leanconv.text import one_line

# What may change from one call to the next in the same folder: it decides after the training. A folder may move.
FREE = ("max_loss", "export", "out")
_MOST_FASTER = 1000.0
_MOST = 2**31
_MOST_NUMBERS = 2**28  # in the timed input: 1 GiB of float32
SUFFIXES = (".onnx", ".xml", ".pt2")


@dataclass(frozen=True)
class Asked:
    """The arguments of one lean network.

    Attributes:
        model: a run folder, or any model reference.
        out: the folder that gets the lean network and every stage's result.
        data: a data reference, or a folder of unlabelled images; "" takes the run's own data.
        faster: how many times as fast as the dense network it should be; 0 asks for no speed.
        to: one operator for all layers that it may replace; "" searches.
        where: the layers that may change, a glob over names; "" is every one that `plan` takes.
        candidates: operators of the search; empty takes its own list.
        epochs: of the recovery; 0 leaves the fitted weights.
        lr: of the recovery; 0 takes that of the recipe `recover`, or a lower one where the fit came near.
        images: training images that the search and the fit see.
        size: side of the images of a model that is no run, in pixels; 0 takes the run's.
        input: `N C H W` of the timed input; empty is one image of `size`.
        threads: of the CPU; 0 leaves torch's own.
        budget_s: seconds that the engines of each network may take to be prepared and timed.
        max_loss: the largest loss of the score, .01 is one point; None sets no limit.
        export: the file to write, .onnx, .xml or .pt2; "" writes none.
    """

    model: str
    out: str
    data: str = ""
    faster: float = 0.0
    to: str = ""
    where: str = ""
    candidates: tuple[str, ...] = ()
    epochs: int = 1
    lr: float = 0.0
    images: int = 512
    size: int = 0
    input: tuple[int, ...] = ()
    threads: int = 0
    budget_s: float = 60.0
    max_loss: float | None = None
    export: str = ""

    def __post_init__(self) -> None:
        read(self.model)
        if not self.out.strip() or "\0" in self.out:
            raise BadInput(f"--out {self.out!r}: name a folder")
        self._check_goal()
        self._check_numbers()
        if self.input and (len(self.input) != 4 or min(self.input) < 1):
            raise BadInput(f"--input {','.join(map(str, self.input))}: four sizes N,C,H,W, each at least 1")
        shape = self.input or (1, 3, self.size, self.size)
        if math.prod(shape) > _MOST_NUMBERS:
            said = f"--input {','.join(map(str, shape))}" if self.input else f"--size {self.size}"
            raise BadInput(f"{said}: {math.prod(shape)} numbers, at most {_MOST_NUMBERS}: take a smaller one")
        if self.export and Path(self.export).suffix not in SUFFIXES:
            raise UnknownName(f"--export {self.export}: the suffix decides the format; known: {', '.join(SUFFIXES)}")
        if os.path.exists(self.out) and os.path.exists(self.model) and os.path.samefile(self.out, self.model):
            raise BadInput(f"--out {self.out} is the dense network's own folder: choose another, the dense one stays")

    def _check_goal(self) -> None:
        if not (self.faster or self.to):
            raise BadInput("say what to reach: --faster 2x (a search), or --to OP (one operator in all layers)")
        if self.to and self.candidates:
            raise BadInput("--candidates belong to a search, and --to OP asks for none: leave one of them out")
        for operator in filter(None, (self.to, *self.candidates)):
            parse(operator)
        if self.faster and not 1 < self.faster <= _MOST_FASTER:
            raise BadInput(f"--faster {self.faster:g}: a factor above 1 and at most {_MOST_FASTER:g}, like 2x")

    def _check_numbers(self) -> None:
        for key, least in (("epochs", 0), ("images", 1), ("size", 0), ("threads", 0)):
            if not least <= (value := getattr(self, key)) < _MOST:
                raise BadInput(f"--{key} {value}: a whole number of at least {least}")
        if not 0 <= self.lr < math.inf or not 0 < self.budget_s < math.inf:
            raise BadInput(f"--lr {self.lr:g}, --budget {self.budget_s:g}: a rate of at least 0, seconds above 0")
        if self.max_loss is not None and not 0 <= self.max_loss <= 1:
            raise BadInput(f"--max-loss {self.max_loss:g}: a share of the score, from 0 to 1; .01 is one point")

    def to_dict(self) -> dict[str, Any]:
        """The arguments as JSON holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def read(cls, stored: Any, where: Path) -> Self:
        """The arguments that a file has. Raises BadCheckpoint for a key or a type that is none of ours."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        if not isinstance(stored, dict) or set(stored) != set(fields):
            raise BadCheckpoint(f"{where}: its arguments are not those of `leanconv lean`; choose another --out")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        for key, value in values.items():
            if not _fits(key, value):
                raise BadCheckpoint(f"{where}: {key}={one_line(value, most=60)} is no value of it")
        try:
            return cls(**values)
        except (BadInput, UnknownName) as error:
            raise BadCheckpoint(f"{where}: {error}") from error

    def differs(self, before: "Asked") -> list[str]:
        """The arguments that are not those of an earlier call, as `key=value` of the earlier one."""
        mine, theirs = self.to_dict(), before.to_dict()
        return [f"{key}={_shown(theirs[key])}" for key in mine if key not in FREE and mine[key] != theirs[key]]


def factor(text: str) -> float:
    """`2x`, `2` or `1.5x` as a number. Raises BadInput for other text."""
    try:
        value = float(text.strip().lower().removesuffix("x").removesuffix("×"))
    except ValueError:
        value = math.nan
    if not 1 < value <= _MOST_FASTER:
        raise BadInput(f"--faster {one_line(text, most=40)!r}: a factor above 1, like 2x")
    return value


_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "out", "data", "to", "where", "export"), (str,)),
    **dict.fromkeys(("epochs", "images", "size", "threads"), (int,)),
    **dict.fromkeys(("faster", "lr", "budget_s"), (int, float)),
    "max_loss": (int, float, type(None)),
    "candidates": (tuple,),
    "input": (tuple,),
}


def _fits(key: str, value: Any) -> bool:
    if isinstance(value, tuple):
        inside = str if key == "candidates" else int
        return key in ("candidates", "input") and all(type(each) is inside for each in value)
    return type(value) in _KINDS[key]


def _shown(value: Any) -> str:
    return one_line(",".join(map(str, value)) if isinstance(value, list) else value, most=80) or "(nothing)"
