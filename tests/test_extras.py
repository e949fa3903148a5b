"""Optional libraries that are not there, or do not import: one line that says which, and what to do."""

import ast
import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
import torch._dynamo  # it looks for some of the libraries itself
from torch import nn

import leanconv
from leanconv.engine.machine import EXTRAS
from leanconv.errors import MissingExtra
from leanconv.extras import MODULES, installed, needs
from leanconv.kernels.cpu.pipelines import frontend
from leanconv.kernels.cpu.runtime import transpose
from leanconv.kernels.cpu.tuning.cpu import this_cpu

ROOT = Path(leanconv.__file__).parent
OPTIONAL = {module for _, libraries in EXTRAS.values() for module in libraries.values()}

GLIBC = "/lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /x/_y.so)\nsecond line"
BROKEN = {
    "a system library": (ImportError(GLIBC), "ImportError: /lib/libstdc++.so.6: version `GLIBCXX_3.4.32' not found"),
    "another numpy": (AttributeError("module 'numpy' has no attribute 'bool8'"), "AttributeError: module 'numpy' has"),
    "a shared object": (OSError("libGL.so.1: cannot open shared object file"), "OSError: libGL.so.1: cannot open"),
}
HOMELESS = RuntimeError("Could not determine home directory.")


class Raising:
    """Finds the library and raises while it is imported."""

    def __init__(self, library, error):
        self.library, self.error = library, error

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name.split(".")[0] == self.library else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise self.error


@pytest.fixture
def put(monkeypatch):
    """Take a library away, or make its import raise; what a test has imported already comes back afterwards."""

    def make(library, error=None):
        for name in [library, *(name for name in sys.modules if name.startswith(f"{library}."))]:
            monkeypatch.setitem(sys.modules, name, None)  # "import of NAME halted", and no finder has it
            if error is not None:
                monkeypatch.delitem(sys.modules, name)
        if error is not None:
            monkeypatch.setattr(sys, "meta_path", [Raising(library, error), *sys.meta_path])

    return make


def told(library, extra, module=None):
    with pytest.raises(MissingExtra) as error, needs(library, extra):
        importlib.import_module(module or MODULES.get(library, library))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_library_that_is_not_installed(put):
    assert told("nosuch", "export") == "nosuch is not installed: pip install 'leanconv[export]'"
    put("PIL")
    assert not installed("PIL")
    assert told("pillow", "train") == "pillow is not installed: pip install 'leanconv[train]'"
    assert told("pillow", "train", "PIL.Image") == "pillow is not installed: pip install 'leanconv[train]'"


def test_a_finder_that_raises_finds_nothing(monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    assert not installed("nosuch")
    assert told("nosuch", "cpu") == "nosuch is not installed: pip install 'leanconv[cpu]'"


@pytest.mark.parametrize("case", BROKEN)
def test_a_library_that_is_broken_is_not_called_missing(case, put):
    error, says = BROKEN[case]
    put("openvino", error)
    assert installed("openvino")
    line = told("openvino", "export")
    assert line.startswith(f"openvino is installed but does not import: {says}")
    assert line.endswith("; reinstall it: pip install --force-reinstall openvino")


def test_what_a_library_needs_itself(put):
    put("openvino", ModuleNotFoundError("No module named 'frobnicate'", name="frobnicate"))
    assert told("openvino", "export") == (
        "openvino needs frobnicate, which is not installed: pip install 'leanconv[export]'"
    )
    assert told("torch", "train", "torch.nosuch") == (
        "torch is installed without torch.nosuch, too old or in part: pip install -U torch"
    )


def test_a_home_directory_that_nobody_has(put):
    put("openvino", HOMELESS)
    assert told("openvino", "export") == (
        "openvino is installed but does not import: RuntimeError: Could not determine home directory;"
        " it looks for a home directory: set HOME to a folder"
    )


def test_openvino_itself_without_a_home(monkeypatch, put):
    """The library's own error, where there is neither HOME nor an entry for the user: this package's words for it."""
    pytest.importorskip("openvino", reason="needs the export extra: openvino")
    telemetry = pytest.importorskip("openvino_telemetry.utils.opt_in_checker", reason="this OpenVINO looks at no home")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(MissingExtra, match=r"does not import: .*; .*set HOME to a folder"), needs("openvino", "export"):
        telemetry.OptInChecker().check(False, False)


@pytest.mark.parametrize(
    ("suffix", "library"), [(".onnx", "onnx"), (".onnx", "onnxscript"), (".onnx", "onnxruntime"), (".xml", "openvino")]
)
@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_export_says_so_and_does_not_blame_the_model(suffix, library, broken, put, tmp_path):
    for each in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(each, reason=f"needs the export extra: {each}")
    leanconv.deploy.openvino.openvino_core.cache_clear()
    put(library, HOMELESS if broken else None)
    says = f"^{library} is installed but does not import: .*HOME" if broken else f"^{library} is not installed: pip"
    with pytest.raises(MissingExtra, match=says):
        leanconv.export(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8), tmp_path / f"m{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_memory():
    """Nothing that a process finds out about its libraries outlives the test."""
    memos = (frontend.halide, this_cpu, transpose._runs, leanconv.deploy.openvino.openvino_core)
    for memo in memos:
        memo.cache_clear()
    yield
    for memo in memos:
        memo.cache_clear()


@pytest.mark.parametrize("budget", [20, 1e-3], ids=["tried", "skipped"])
@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_optimize_says_so_in_the_rows(broken, budget, without_memory, put):
    for library in ("openvino", "onnxruntime", "halide"):
        pytest.importorskip(library, reason=f"needs {library}")
    for library in ("openvino", "onnxruntime", "halide"):
        put(library, BROKEN["another numpy"][0] if broken else None)
    engines = ("openvino", "onnxruntime", "fused")
    made = leanconv.optimize(nn.Conv2d(3, 4, 3).eval(), torch.randn(1, 3, 8, 8), engines=engines, budget_s=budget)
    for library in ("openvino", "onnxruntime"):
        note = made.choices[library].note
        if not broken:
            assert note.endswith(f"{library} not installed: pip install 'leanconv[export]'")
        elif budget > 1:
            assert note.startswith(f"failed: {library} is installed but does not import: AttributeError: ")
    assert ("halide is installed but does not import: Attr" if broken else "pip install 'leanconv[cpu]'") in (
        made.choices["fused"].note
    )


def test_every_optional_import_is_told():
    """Whoever imports an optional library says in the same file what to do without it."""
    later = {"deploy/names.py": {"onnx_ir", "openvino"}}  # after deploy/program.py, which has asked for both
    found = {}
    for path in ROOT.rglob("*.py"):
        if (
            path.parent.name == "script"
        ):  # the parts of infer.py: it runs without leanconv, and its head says what it needs
            continue
        tree = ast.parse(path.read_text())
        blocks = [block for block in ast.walk(tree) if isinstance(block, ast.If)]
        typed = {id(n) for block in blocks if "TYPE_CHECKING" in ast.dump(block.test) for n in ast.walk(block)}
        asked = {
            MODULES.get(word := item.context_expr.args[0].value, word)
            for block in ast.walk(tree)
            if isinstance(block, ast.With)
            for item in block.items
            if isinstance(item.context_expr, ast.Call) and getattr(item.context_expr.func, "id", "") == "needs"
        }
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used = {name.split(".")[0] for name in names} & OPTIONAL - asked
            if used and id(node) not in typed:
                found.setdefault(str(path.relative_to(ROOT)), set()).update(used)
    assert found.pop("deploy/names.py") <= later["deploy/names.py"]
    assert not found


QUIETLY = """
import sys
from pathlib import Path
from leanconv.deploy.openvino import openvino_core
openvino_core()
import openvino
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
assert "openvino_telemetry" not in sys.modules
import torch
openvino.convert_model(torch.nn.ReLU(), example_input=torch.zeros(1))
assert not (Path.home() / "intel").exists()
import openvino_telemetry  # for others it is there
"""


def test_openvino_sends_no_telemetry(tmp_path):
    pytest.importorskip("openvino_telemetry", reason="needs the export extra: openvino")
    subprocess.run([sys.executable, "-c", QUIETLY], env=os.environ | {"HOME": str(tmp_path)}, check=True)
