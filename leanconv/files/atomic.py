"""Write files atomically: a full disk, a signal or a read-only folder never destroys the old file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput
from leanconv.files.drafts import draft


def write_atomic(path: str | Path, data: bytes | str, *, check: Callable[[], object] = bool) -> Path:
    """Write `data` to `path` atomically, and create its folder. Raises BadInput if writing fails.

    Lone surrogates, from names that are not UTF-8, are written as escapes.
    """
    content = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    return replace_atomic(path, lambda temporary: temporary.write_bytes(content), check=check)


def replace_atomic(path: str | Path, write: Callable[[Path], object], *, check: Callable[[], object] = bool) -> Path:
    """Let `write` fill a draft, then move it to `path` at once. Raises BadInput on failure.

    Args:
        check: called right before the old file is replaced. It may raise.
    """
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
            check()
            temporary.replace(path)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror or error}; the old file, if any, is untouched"
        ) from error
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_atomic(path, json.dumps(value, indent=2) + "\n")
