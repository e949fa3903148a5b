"""CONTRIBUTING names files and folders that exist, and commands of the Makefile."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "docs/limits.md", "docs/new_operator.md")}
PATH = re.compile(r"`((?:leanconv|tests|docs|benchmarks|kernels|engine|ops|\.ci)/[\w./]+)`")


def missing(text):
    """Paths that do not exist; those with a word in capitals stand for what a contributor adds."""
    found = {path for path in PATH.findall(text) if not re.search(r"NAME|DEVICE", path)}
    return sorted(path for path in found if not ((ROOT / path).exists() or (ROOT / "leanconv" / path).exists()))


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page):
    assert missing(PAGES[page]) == []


def test_the_pattern_sees_a_missing_path():
    assert missing("`leanconv/nowhere.py` and `kernels/cpu/runtime`") == ["leanconv/nowhere.py"]
    assert len(PATH.findall(PAGES["CONTRIBUTING.md"])) > 20


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    named = re.findall(r"`make ([a-z-]+)`", PAGES["CONTRIBUTING.md"])
    assert named
    assert set(named) <= set(targets)
