"""What a search has measured so far, in a JSON file: a search that was killed goes on from there."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import BadInput
from leanconv.files import read_json, write_json
from leanconv.kernels.cpu.compilation.cache import default_folder
from leanconv.kernels.cpu.compilation.permissions import claim

_FORMAT = "leanconv search 1"
_FOLDER = "search"


class Kept:
    """Numbers by name, written to `path` as they come. `note`: why the file was not used, or ""."""

    def __init__(self, path: Path | None, key: str) -> None:
        """`key`: what the numbers depend on; a file of another key, or a damaged one, is started anew."""
        self.path, self.key, self.note = path, key, ""
        self._values: dict[str, float] = {}
        if path is not None and path.exists():
            try:
                self._values = _checked(read_json(path), key)
            except BadInput as error:
                self.note = f"the state file was started anew: {error}"

    def get(self, name: str) -> float | None:
        return self._values.get(name)

    def put(self, name: str, value: float) -> float:
        """Keep a number (an infinite one too). A folder that cannot be written is noted, and no error."""
        self._values[name] = value
        if self.path is not None:
            try:
                content = {name: None if math.isinf(value) else value for name, value in self._values.items()}
                write_json(self.path, {"format": _FORMAT, "key": self.key, "values": content})
            except BadInput as error:
                self.note, self.path = f"what was measured is not kept: {error}", None
        return value


def _checked(stored: Any, key: str) -> dict[str, float]:
    """The numbers of a state file, which may be damaged or of another search. Raises BadInput."""
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT or not isinstance(stored.get("values"), dict):
        raise BadInput("it is no state file of this version")
    if stored.get("key") != key:
        raise BadInput("it belongs to another model, other data or other settings")
    values = {}
    for name, value in stored["values"].items():
        number = math.inf if value is None else value
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise BadInput(f"its value of {name[:80]!r} is no number")
        values[name] = float(number)
    return values


def default_state(key: str) -> Path | None:
    """The file of a search in leanconv's cache folder (`LEANCONV_CACHE`); None where that folder is not ours alone."""
    folder = default_folder()
    return None if claim(folder) else folder / _FOLDER / f"{key}.json"


def read_cached(key: str) -> Any:
    """What the cache folder has under a key; None without, or where it is unreadable."""
    with contextlib.suppress(BadInput):
        if (path := default_state(key)) is not None and path.exists():
            return read_json(path)
    return None


def write_cached(key: str, value: Any) -> None:
    """Keep JSON under a key; a folder that cannot be written costs only the time of measuring again."""
    with contextlib.suppress(BadInput):
        if (path := default_state(key)) is not None:
            write_json(path, value)


def digest(*parts: Any) -> str:
    """A name for what the parts say."""
    return hashlib.sha256(json.dumps(parts, default=repr, sort_keys=True).encode()).hexdigest()[:32]


def of_model(model: nn.Module) -> str:
    """A digest of a model's structure, its parameters and buffers, and the modes of its modules."""
    made = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            made.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            _update(made, [tensor])
    return made.hexdigest()


def of_tensors(values: Iterable[Tensor]) -> str:
    """A digest of numbers, shapes and types."""
    made = hashlib.sha256()
    _update(made, values)
    return made.hexdigest()


def _update(made: Any, values: Iterable[Tensor]) -> None:
    for tensor in values:
        flat = tensor.detach().cpu().contiguous()
        made.update(f"{tuple(flat.shape)} {flat.dtype}".encode())
        made.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
