"""What searches have measured so far, in a JSON file: a search that was killed goes on from there."""

import contextlib
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput
from leanconv.files import read_json, write_json
from leanconv.kernels import cache_folder

_FORMAT = "leanconv search 2"
_FOLDER = "search"
_OTHER = "it stays as it is: name a new file for the state"
_MOST = 1e200  # no harm is larger: sums and ratios of such numbers stay within a float


class Kept:
    """Numbers by name, written to `path` as they come. `note`: why none were read, or none are written; else "".

    One file holds any number of searches, each under its key; a search leaves the others in it as they are.
    """

    def __init__(self, path: Path | None, key: str, *, cache: bool = False) -> None:
        """Read what the file has under `key`; damaged numbers are measured again.

        Args:
            key: what the numbers depend on.
            cache: the file is one of the cache folder, which is replaced where it is damaged.
        Raises: BadInput for a file that no search wrote, unless `cache`: it stays as it is.
        """
        self.path, self.key, self.note, self._cache = path, key, "", cache
        self._values: dict[str, float] = {}
        if path is None:
            return
        stored = self._others(path).get(key)
        try:
            self._values = {} if stored is None else _checked(stored)
        except BadInput as error:
            self.note = f"{path}: this search was started anew: {error}"

    def get(self, name: str) -> float | None:
        return self._values.get(name)

    def put(self, name: str, value: float) -> float:
        """Keep a number (an infinite one too). A file that cannot be written is noted, and no error."""
        self._values[name] = value
        if self.path is not None:
            try:
                own = {name: None if math.isinf(value) else value for name, value in self._values.items()}
                write_json(self.path, {"format": _FORMAT, "searches": {**self._others(self.path), self.key: own}})
            except BadInput as error:
                self.note, self.path = f"what was measured is not kept: {error}", None
        return value

    def _others(self, path: Path) -> dict[str, Any]:
        """All searches of the file as it is now: another process may write it too."""
        try:
            return read_searches(path)
        except BadInput:
            if not self._cache:
                raise
            return {}


def read_searches(path: Path) -> dict[str, Any]:
    """The searches of a state file, by key, their numbers unchecked; none where it is absent or empty.

    Raises: BadInput for a file that no search of this version wrote.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return {}
    try:
        stored = read_json(path)
    except BadInput as error:
        raise BadInput(f"{error}; {_OTHER}") from error
    searches = stored.get("searches") if isinstance(stored, dict) and stored.get("format") == _FORMAT else None
    if not isinstance(searches, dict):
        raise BadInput(f"{path}: no state of a search of this version ({_FORMAT!r}); {_OTHER}")
    return searches


def _checked(stored: Any) -> dict[str, float]:
    """The numbers of one search. Raises BadInput where they are damaged."""
    if not isinstance(stored, dict):
        raise BadInput("its state is damaged")
    values = {}
    for name, value in stored.items():
        known = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        if not known or (value is not None and not abs(value) <= _MOST):
            raise BadInput(f"its value of {name[:80]!r} is no possible number")
        values[name] = math.inf if value is None else float(value)
    return values


def default_state(key: str) -> Path | None:
    """The file of a search in leanconv's cache folder (`LEANCONV_CACHE`); None where that folder is not ours alone."""
    folder = cache_folder()
    return None if folder is None else folder / _FOLDER / f"{key}.json"


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
