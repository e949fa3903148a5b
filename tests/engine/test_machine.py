"""What `doctor` says about this machine."""

import importlib.util
import shutil
import tomllib
from pathlib import Path

import pytest
import torch

from leanconv.engine import machine


def test_extras_are_those_of_pyproject():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = {k: set(v) for k, v in project["optional-dependencies"].items() if k in machine.EXTRAS}
    assert {extra: set(libraries) for extra, (_, libraries) in machine.EXTRAS.items()} == declared
    assert set(project["optional-dependencies"]) - set(machine.EXTRAS) <= {"all", "dev", "cpu", "search"}


def test_the_facts():
    found = machine.diagnose()
    assert found.machine["torch"] == torch.__version__
    assert found.machine["threads"] == torch.get_num_threads()
    items = {item.name: item for item in found.items}
    assert items["C++ compiler"].ok == bool(shutil.which("g++") or shutil.which("c++") or shutil.which("clang++"))
    assert set(found.to_dict()) == {"machine", "items", "missing"}
    assert all(item.name in str(found) for item in found.items)


def test_what_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(machine, "_version", lambda distribution, module: "")
    monkeypatch.setattr(machine, "_which", lambda *names: "")
    found = machine.diagnose()
    assert {"pip install 'leanconv[export]'", "apt install g++", "apt install chromium"} <= set(found.missing)
    assert len(found.missing) == len(set(found.missing))
    assert "pip install 'leanconv[train]'" in str(found)
    monkeypatch.setattr(machine, "_version", lambda distribution, module: "1")
    monkeypatch.setattr(machine, "_which", lambda *names: "/bin/x")
    assert "everything is installed" in str(machine.diagnose())


def test_where_the_kernels_are_kept(monkeypatch, tmp_path):
    pytest.importorskip("halide", reason="needs the cpu extra")
    from leanconv.kernels.cpu import build, cache

    monkeypatch.setenv("LEANCONV_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "_gone", {})
    if build.compiler():
        said = machine.diagnose().machine["kernels"]
        assert str(tmp_path / "kept") in said
        assert "0 of them, 0.0 of 512 MiB" in said
        monkeypatch.setenv("LEANCONV_CACHE", "relative")
        assert "compiled in each process" in machine.diagnose().machine["kernels"]
        assert "relative: it is not an absolute path" in str(machine.diagnose())
    monkeypatch.setattr(build, "compiler", lambda: "")
    assert "no C compiler to keep kernels; apt install gcc" in machine.diagnose().machine["kernels"]


def test_without_halide_the_kernels_say_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "halide" else real(name))
    assert "pip install 'leanconv[cpu]'" in machine.diagnose().machine["kernels"]
