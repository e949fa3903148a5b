"""Writing files so that a full disk, a signal or a read-only folder never costs the old file."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput


def write_atomic(path: str | Path, data: bytes | str) -> Path:
    """Write `data` to `path` whole or not at all; the folder is made. Raises BadInput where it cannot be written."""
    content = data.encode() if isinstance(data, str) else data
    return replace_atomic(path, lambda temporary: _write(temporary, content))


def replace_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path` (same suffix), then put it in place at once. Raises BadInput on failure."""
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written: {error.strerror or error}; the old file, if any, is untouched"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises BadInput with the path and the reason where that is not possible."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON: {error}") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
