"""The README: short, runnable, its commands ones that leanconv takes, its numbers those of the results files."""

import functools
import json
import re
import shlex

import pytest
import typer

import leanconv
from docs.generate import ROOT
from docs.generate.banner import times
from docs.generate.measured import RESULTS, Results
from leanconv.cli.main import build
from leanconv.nn import names
from leanconv.train.recipe import Recipe

README = ROOT.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def test_it_is_short():
    assert len(TEXT.split()) <= 1200


def test_its_first_screen_has_the_picture():
    above = TEXT.partition("## ")[0]
    assert re.search(r"!\[[^\]]+\]\(docs/figures/\w+\.png\)", above)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT.parent / target).exists(), target


@pytest.mark.parametrize("page", ["guide.md", "results.md", "limits.md"])
def test_anchors_lead_to_headings(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", text):
        there = (ROOT / (target or page)).read_text(encoding="utf-8")
        assert anchor in {_anchor(heading) for heading in _HEADING.findall(there)}, anchor


def _anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_commands_are_ones_that_leanconv_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = tmp_path / "runs/dense"
    teacher.mkdir(parents=True)
    (teacher / "model.json").touch()
    lines = [line for line in TEXT.splitlines() if line.startswith("leanconv ")]
    assert len(lines) == 6
    for line in lines:
        _, name, *words = shlex.split(line)
        command = typer.main.get_command(build(name)).commands[name]
        context = command.make_context(name, words)
        if recipe := context.params.get("recipe"):
            Recipe.read(recipe, context.params["words"] or [])


def test_numbers_are_the_results_files():
    """Looked up again with nothing of the generator's."""
    entries = json.loads((RESULTS / "fused_engine.json").read_text())
    (given,) = (e for e in entries if e["model"] == "timm:mobilenetv3_small_100")
    ms = {name.rpartition(", ")[2]: timed["median_ms"] for name, timed in given["times"].items()}
    for engine in ("fused", "onnxruntime", "channels_last"):
        assert f"{ms[engine]:.2f}" in TEXT.partition("## Install")[0]
    assert ms["onnxruntime"] == min(value for engine, value in ms.items() if engine != "fused")
    bars = times(Results.read())
    assert f"dense {bars['dense, leanconv']:.0f} ms, with SPLConv {bars['SPLConv, leanconv']:.0f} ms" in TEXT
    assert TEXT.count("x |\n") == 5  # the rows of the table
    assert f"{len(names())} operators" in TEXT


@pytest.mark.slow
def test_the_ten_lines_run(monkeypatch, capsys):
    """On small images and with two engines, so that it takes seconds."""
    pytest.importorskip("timm", reason="the README uses timm")
    quick = functools.partial(leanconv.optimize, engines=["folded", "channels_last"], budget_s=10)
    monkeypatch.setattr(leanconv, "optimize", quick)
    space = {}
    for block in re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        exec(compile(block.replace("224, 224", "64, 64"), "README.md", "exec"), space)
    printed = capsys.readouterr().out
    assert "layers swapped" in printed
    assert {"dense", "lean"} <= {line.split()[0] for line in printed.splitlines() if line.strip()}
