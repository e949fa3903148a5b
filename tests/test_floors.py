"""Imports run down the floors: from a lower floor or from the own folder, never upwards or sideways."""

import ast
from pathlib import Path

import pytest

import leanconv

ROOT = Path(leanconv.__file__).parent
FLOORS = [
    "spec cost registry errors files table text version progress agreement probes copies extras running lazy muon",
    "ops",
    "nn kernels",
    "models convert measure",
    "runs deploy papers recipes",
    "engine train",
    "planner serving",
    "report",
    "cli",
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names.split()}
FILES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem not in ("__init__", "__main__"))


def allowed(here: str, there: str) -> bool:
    """A file of room `here` says `from leanconv.there import ...`."""
    return here == there or FLOOR[there] < FLOOR[here] or FLOOR[there] == FLOOR[here] == 0


def imported_rooms(source: str):
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "leanconv":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "leanconv":
                    yield parts[1] if len(parts) > 1 else "leanconv"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert here in FLOOR, f"{here} stands on no floor"
    for there in imported_rooms(path.read_text()):
        assert there in FLOOR, f"{path.name} imports from leanconv itself: name the room ({there})"
        assert allowed(here, there), f"{here} (floor {FLOOR[here]}) imports {there} (floor {FLOOR[there]})"


def test_the_walk_sees_a_forbidden_import():
    assert not allowed("nn", "convert")
    assert not allowed("convert", "measure")
    assert list(imported_rooms("def f():\n    from leanconv.engine import optimize")) == ["engine"]


def test_no_relative_imports():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
