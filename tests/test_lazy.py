"""Lazy rooms: every public name is there, is what a checker reads, and is hidden by no file of its own name."""

import ast
import importlib
from pathlib import Path

import pytest

import leanconv
from leanconv.lazy import names_from

ROOT = Path(leanconv.__file__).parent
ROOMS = sorted(
    ".".join(path.parent.relative_to(ROOT.parent).parts)
    for path in ROOT.rglob("__init__.py")
    if "names_from(__name__" in path.read_text()
)


def declared(room):
    """Name -> file, as the room's `if TYPE_CHECKING` says."""
    found = {}
    for node in ast.walk(ast.parse(Path(importlib.import_module(room).__file__).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module != "leanconv.lazy" and node.module.startswith("leanconv"):
            found |= {alias.name: node.module for alias in node.names}
    found.pop("__version__", None)
    return found


def test_the_rooms_are_seen():
    assert {"leanconv", "leanconv.measure", "leanconv.kernels", "leanconv.kernels.cpu", "leanconv.train"} <= set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_each_name_is_what_a_checker_reads(room):
    package, names = importlib.import_module(room), declared(room)
    assert names
    assert set(getattr(package, "__all__", names)) == set(names)
    for name, file in names.items():
        assert getattr(package, name) is getattr(importlib.import_module(file), name), name
        assert importlib.util.find_spec(f"{room}.{name}") is None, f"{room}.{name} is a file: it would hide the name"
    with pytest.raises(AttributeError, match=f"{room}' has no attribute 'nothing'; it has {min(names)}"):
        package.nothing  # noqa: B018


def test_a_name_is_loaded_once(monkeypatch):
    get = names_from("leanconv.measure", {"device": "label"})
    monkeypatch.delitem(vars(leanconv.measure), "label", raising=False)
    assert get("label") is vars(leanconv.measure)["label"]
