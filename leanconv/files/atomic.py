"""Writing files so that a full disk, a signal or a read-only folder never costs the old file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput
from leanconv.files.drafts import draft


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write `data` to `path` whole or not at all; the folder is made. Raises BadInput where it cannot be written."""
    content = data.encode() if isinstance(data, str) else data
    return replace_atomic(path, lambda temporary: temporary.write_bytes(content))


def replace_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file of the same name in a draft, then put it in place at once. Raises BadInput on failure."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("it is a device or a pipe, which no file replaces")
        with draft(path.parent) as folder:
            temporary = folder / path.name
            write(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror or error}; the old file, if any, is untouched"
        ) from error
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises BadInput with the path and the reason where that is not possible."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON: {error}") from error


def read_bytes(path: str | Path) -> bytes:
    """What a file holds. Raises BadInput where it is missing, or no file: a pipe would keep us waiting for ever."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise BadInput(f"{path}: cannot be read: it is no file")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
