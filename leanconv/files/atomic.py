"""Write files atomically: a full disk, a signal or a read-only folder never destroys the old file."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput
from leanconv.files.drafts import draft


def write_atomic(path: str | Path, data: bytes | str, *, check: Callable[[], object] = bool) -> Path:
    """Write `data` to `path` atomically, and create its folder. Raises BadInput if writing fails.

    Lone surrogates, from names that are not UTF-8, are written as escapes.
    """
    content = _encoded(data)
    return replace_atomic(path, lambda temporary: temporary.write_bytes(content), check=check)


def write_together(files: Mapping[Path, bytes | str], drafts: Path | None = None) -> None:
    """Write several files of one folder, which exists. A killed process leaves each of them old or new.

    For many small files that can be made again: unlike `write_atomic`, nothing waits for the disk. After a power
    failure files may be empty. `drafts`: a `draft` of the same folder, to spare a new one; default: a new one. Raises
    BadInput if writing fails.
    """
    path = next(iter(files))
    try:
        with nullcontext(drafts) if drafts and drafts.is_dir() else draft(path.parent) as folder:
            for path, data in files.items():
                (folder / path.name).write_bytes(_encoded(data))
            for path in files:
                (folder / path.name).replace(path)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror or error}") from error


def _encoded(data: bytes | str) -> bytes:
    return data.encode(errors="backslashreplace") if isinstance(data, str) else data


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
    return write_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON."""
    return json.dumps(value, indent=2) + "\n"
