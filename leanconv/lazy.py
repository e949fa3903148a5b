"""Rooms whose public names load on first use (PEP 562), so that a command imports only what it runs."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def names_from(room: str, files: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package.

    Args:
        room: the package, `__name__` in its file.
        files: a file below the package, like "timing.latency", and the public names that it defines. No file may bear
            the name of one of its package's public names: importing it would hide that name.
    """
    home = {name: file for file, names in files.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}; it has {', '.join(sorted(home))}")
        value = getattr(import_module(f"{room}.{home[name]}"), name)
        setattr(sys.modules[room], name, value)
        return value

    return get
