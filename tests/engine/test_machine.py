"""What `doctor` says about this machine."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from leanconv.engine import machine


def test_extras_are_those_of_pyproject():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {name: {one.split(">=")[0] for one in extras[name]} for name in machine.EXTRAS}
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
    from leanconv.kernels.cpu.compilation import build, cache

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


WITHOUT = """
import warnings
warnings.simplefilter("ignore")
import torch
import leanconv as lc
from leanconv.engine import diagnose
torch.set_num_threads(1)
torch.manual_seed(0)
assert "no C compiler to keep kernels; apt install gcc" in str(diagnose()), diagnose()
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
    torch.nn.Conv2d(8, 6, 1), torch.nn.AdaptiveAvgPool2d(1),
).eval()
x = torch.randn(2, 3, 14, 18)
fast = lc.optimize(model, x, engines=["fused"], budget_s=240)
row = fast.choices["fused"]
assert row.error is not None and row.error <= row.tolerance, row
assert any("kernel" in block["times_ms"] for block in fast.choices.to_dict()["blocks"]), fast.choices
for size in (14, 9):
    given = torch.randn(1, 3, size, size)
    torch.testing.assert_close(fast(given), model(given).detach(), rtol=1e-4, atol=1e-5)
"""


def test_a_process_without_a_c_compiler_says_so_and_is_right(tmp_path):
    """No compiler on its PATH: kernels are Halide's own, made in the process; nothing is kept."""
    pytest.importorskip("halide", reason="needs the cpu extra")
    environment = os.environ | {"LEANCONV_CACHE": str(tmp_path / "kernels"), "PATH": str(tmp_path), "CC": ""}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.rglob("*.so"))
