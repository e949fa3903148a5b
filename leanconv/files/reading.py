"""Read foreign files: an unreadable one becomes one clear line, and no pipe or device blocks."""

import codecs
import json
import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput

_LARGEST_TOML = 2**20  # bytes; a complete recipe has a thousandth of that
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: str | Path) -> None:
    """Raise BadInput if the path is no file. Reading a pipe could block for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "something else")
        raise BadInput(f"{path}: cannot be read: it is no file but {kind}")


def check_run(path: str | Path) -> None:
    """Raise BadInput if the path is no run folder. Needs no PyTorch, so that a mistyped path is answered at once."""
    folder = Path(path)
    if not os.path.isdir(folder):
        raise BadInput(f"{path}: the run folder does not exist; `leanconv train` writes one")
    if not ((folder / "model.json").is_file() or (folder / "recipe.toml").is_file()):
        raise BadInput(f"{path}: is no run folder: it has neither model.json nor recipe.toml")


def read_bytes(path: str | Path, *, most: int = sys.maxsize) -> bytes:
    """Return a file's content. Raises BadInput if it is unreadable or has more than `most` bytes."""
    try:
        check_file(path)
        if (size := os.path.getsize(path)) > most:
            raise BadInput(f"{path}: has {size:,} bytes; at most {most:,} are allowed")
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: str | Path, *, most: int = sys.maxsize) -> Any:
    """Read a JSON file of at most `most` bytes. Raises BadInput with path and reason on failure."""
    content = read_bytes(path, most=most)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file, with or without a byte order mark. Raises BadInput on failure."""
    content = read_bytes(path, most=_LARGEST_TOML)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise BadInput(f"{path}: is not TOML: it is UTF-16, or no text; save it as UTF-8")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not TOML: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: is not TOML: {error}") from error
    except ValueError as error:  # Python limits the length of integers
        raise BadInput(f"{path}: a number in it has more than {sys.get_int_max_str_digits()} digits") from error
