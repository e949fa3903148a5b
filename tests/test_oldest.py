"""Every dependency has one floor, and what is installed here is not below it."""

import importlib.util
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("oldest", ROOT / ".ci/oldest.py")
oldest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oldest)
PROJECT = (
    '[build-system]\nrequires = []\n[project]\nname = "lean"\ndependencies = {}\n[project.optional-dependencies]\n'
)


def test_every_dependency_has_a_floor_and_is_not_below_it():
    content = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = oldest.floors(content)
    extras = tomllib.loads(content)["project"]["optional-dependencies"]
    assert {"torch", "numpy", "torchvision", "openvino", "timm", "pytest", "setuptools"} <= set(found)
    assert len(found) >= sum(len(set(extras[name])) for name in ("cpu", "train", "export", "zoo", "dev"))
    for name, floor in found.items():
        if name != "setuptools":  # it builds the package, and need not be here
            assert Version(version(name)) >= Version(floor), name


@pytest.mark.parametrize("written", ["numpy", "numpy==2.2", "numpy<3", "numpy>=2,<3", "numpy~=2.2"])
def test_what_says_no_floor_is_refused(written):
    with pytest.raises(ValueError, match=r"numpy.*no floor.*NAME>=VERSION"):
        oldest.floors(PROJECT.format([written]))


def test_two_floors_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"pillow has two floors.*12\.0 and 12\.1"):
        oldest.floors(PROJECT.format(["pillow>=12.0"]) + 'a = ["pillow>=12.1"]\n')
    assert oldest.floors(PROJECT.format(["a>=1"]) + 'b = ["a>=1", "c-d>=2.0rc1"]\nall = ["lean[b]"]\n') == {
        "a": "1",
        "c-d": "2.0rc1",
    }
