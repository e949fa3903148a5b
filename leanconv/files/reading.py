"""Reading files that somebody else made: what cannot be read is one clear line, and nothing keeps us waiting."""

import codecs
import json
import os
import stat
import sys
import tomllib
from pathlib import Path
from typing import Any

from leanconv.errors import BadInput

_LARGEST_TOML = 2**20  # bytes; a recipe with every key said has one thousandth of that
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: str | Path) -> None:
    """Raise BadInput where something is there that is no file: a pipe would keep its reader waiting for ever."""
    if os.path.exists(path) and not os.path.isfile(path):
        kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "something else")
        raise BadInput(f"{path}: cannot be read: it is no file but {kind}")


def read_bytes(path: str | Path, *, most: int = sys.maxsize) -> bytes:
    """What a file holds. Raises BadInput where that cannot be read, or is more than `most` bytes."""
    try:
        check_file(path)
        if (size := os.path.getsize(path)) > most:
            raise BadInput(f"{path}: has {size:,} bytes; such a file has at most {most:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises BadInput with the path and the reason where that is not possible."""
    content = read_bytes(path)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is not JSON: {error}") from error


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file as people's editors write it, with or without a byte order mark. Raises BadInput as above."""
    content = read_bytes(path, most=_LARGEST_TOML)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise BadInput(f"{path}: is not TOML: it is UTF-16, or no text; save it as UTF-8")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not TOML: byte {error.start} is not UTF-8; save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"{path}: is not TOML: {error}") from error
    except ValueError as error:  # Python converts no longer ones
        raise BadInput(f"{path}: a number in it has more than {sys.get_int_max_str_digits()} digits") from error
