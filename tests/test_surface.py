"""The public surface is pinned, lazy, and light."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import leanconv

PUBLIC = [
    "apply_", "compare", "export", "fold_", "get", "load", "names", "optimize", "optimize_training", "plan", "profile",
    "search",
]  # fmt: skip


def test_public_names():
    assert leanconv.__all__ == PUBLIC
    assert set(dir(leanconv)) == {*PUBLIC, "__version__", "nn"}


@pytest.mark.parametrize("name", [*PUBLIC, "nn"])
def test_each_name_answers_twice_with_the_same_thing(name):
    assert getattr(leanconv, name) is getattr(leanconv, name)
    if name != "nn":
        assert getattr(leanconv, name).__doc__


def test_no_room_bears_the_name_of_a_public_function():
    for name in PUBLIC:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"leanconv.{name}")


def test_unknown_attribute_lists_the_known():
    with pytest.raises(AttributeError, match="optimize"):
        leanconv.nothing  # noqa: B018


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_no_torch(arguments):
    code = """
import sys
from pathlib import Path
from leanconv.cli.main import main
try:
    main()
except SystemExit:
    pass
assert not {"torch", "numpy"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_changelog_tops_at_this_version():
    text = (Path(leanconv.__file__).parents[1] / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", text, re.MULTILINE).group(1) == leanconv.__version__
