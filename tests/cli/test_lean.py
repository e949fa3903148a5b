"""`leanconv lean`: what a user types, what comes out, and with which exit status."""

import json
import shutil

import pytest

from leanconv.errors import BadInput
from leanconv.planner.lean import whole
from leanconv.planner.lean.asked import Asked
from tests.planner.lean.quick_way import broken, dense, way  # noqa: F401 (fixtures)


@pytest.fixture
def quick(way, monkeypatch):  # noqa: F811
    """The command with stages that take no time."""

    def use(**settings):
        monkeypatch.setattr(whole, "Stages", lambda: way.stages(**settings))
        return way

    use()
    return use


def test_the_report_and_the_folder(leanconv, quick, dense, tmp_path):  # noqa: F811
    status, out, err = leanconv("lean", dense.path, "--to", "depthwise_separable")
    assert status == 0
    assert "0.9000" in out
    assert "2.00x faster" in out
    assert f"{tmp_path / 'dense-lean'} is the lean network" in out
    assert "plan " in err
    status, out, _ = leanconv("lean", tmp_path / "dense-lean", "--resume", "--json", "--quiet")
    assert (status, json.loads(out)["accepted"]) == (0, True)


def test_refused_with_the_figures(leanconv, quick, dense, tmp_path):  # noqa: F811
    words = (
        "lean",
        dense.path,
        "--to",
        "depthwise_separable",
        "--quiet",
        "--max-loss",
        ".001",
        "--out",
        tmp_path / "o",
    )
    status, out, err = leanconv(*words)
    assert status == 1
    assert "lost 0.0100" in out
    assert err.startswith("error: top-1 fell by 0.0100")
    assert (tmp_path / "o" / "lean.json").is_file()
    quick(ratio=0.8)
    status, out, err = leanconv(*words[:-4])  # in another folder, where nothing is kept yet
    assert (status, "is not faster: 0.80x" in err) == (1, True)


def test_a_budget_that_nothing_meets(leanconv, quick, way, dense, monkeypatch):  # noqa: F811
    def nothing(*_):
        raise BadInput("no plan meets latency<=2%: the nearest takes 31%")

    monkeypatch.setattr(whole, "Stages", lambda: way.stages(plan=nothing))
    status, out, err = leanconv("lean", dense.path, "--faster", "50x", "--quiet")
    assert (status, out) == (1, "")
    assert "the nearest takes 31%" in err


def test_ctrl_c(leanconv, way, dense, monkeypatch, tmp_path):  # noqa: F811
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole, "Stages", lambda: way.stages(fit=stop))
    status, _, err = leanconv("lean", dense.path, "--to", "sic", "--quiet")
    assert status == 1
    assert "stopped during fit; done and kept: dense, plan; go on with: leanconv lean" in err


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        (["--faster", "fast"], 1, "like 2x"),
        ([], 1, "--faster 2x"),
        (["--to", "hetcon"], 2, "hetconv"),
        (["--to", "sic", "--export", "model.pth"], 2, ".onnx"),
        (["--resume"], 1, "has no lean.json"),
        (["--resume", "--faster", "2x"], 1, "--faster is known to a folder that goes on"),
        (["--to", "sic", "--max-loss", "7"], 1, "from 0 to 1"),
    ],
)
def test_mistakes(leanconv, quick, dense, words, status, what):  # noqa: F811
    found, out, err = leanconv("lean", dense.path, *words)
    assert (found, out) == (status, "")
    assert what in err


def test_help_says_the_defaults_in_words(leanconv):
    status, out, _ = leanconv("lean", "--help")
    shown = " ".join(out.replace("│", " ").split())
    assert status == 0
    assert "that of the recipe recover" in shown
    assert "the run's; a model's: 224" in shown
    assert "default: 0.0" not in shown


def test_nan(leanconv, quick, broken):  # noqa: F811
    status, _, err = leanconv("lean", broken.path, "--to", "sic", "--quiet")
    assert status == 1
    assert "NaN or infinite" in err


@pytest.mark.parametrize("labelled", [True, False])
def test_a_folder_of_somebody_runs_no_code_without_trust(leanconv, coloured, tmp_path, labelled):
    images = coloured
    if not labelled:
        images = tmp_path / "images"
        images.mkdir()
        for path in (coloured / "train").rglob("*.png"):
            shutil.copy(path, images / f"{path.parent.name}{path.name}")
    folder, ran = tmp_path / "theirs", tmp_path / "ran"
    folder.mkdir()
    code = folder / "net.py"
    code.write_text(f"open({str(ran)!r}, 'w').close()\ndef make():\n    raise RuntimeError('it was run')\n")
    asked = Asked(model=f"{code}:make", out=str(folder), data=str(images), to="sic", size=16)
    content = {"format": 1, "leanconv": "1", "asked": asked.to_dict(), "stages": {}}
    (folder / "lean.json").write_text(json.dumps(content))
    status, out, err = leanconv("lean", folder, "--resume", "--quiet")
    assert (status, out, ran.exists()) == (1, "", False)
    assert "net.py:make; read that file, and say --trust-code" in err
    status, _, err = leanconv("lean", folder, "--resume", "--quiet", "--trust-code")
    assert (status, ran.exists()) == (1, True)
    assert "it was run" in err


def test_code_that_the_user_types_needs_no_trust(leanconv, coloured, tmp_path):
    code = tmp_path / "net.py"
    code.write_text("def make():\n    raise RuntimeError('it was run')\n")
    words = ("--to", "sic", "--size", "16", "--data", coloured, "--out", tmp_path / "out", "--quiet")
    status, _, err = leanconv("lean", f"{code}:make", *words)
    assert (status, "it was run" in err) == (1, True)
