"""The figures' numbers against the papers' closed formulas, and the committed SVG files against the numbers."""

import re

import pytest

from docs.generate import ROOT
from docs.generate.banner import NAME, banner_times, draw_banner, times
from docs.generate.figures import FIGURES, draw, drawn, hetconv_speedup, xsepconv_cost
from docs.generate.measured import Results


def test_hetconv_speedup_is_the_papers_formula():
    """Eq. 5: the cost falls to 1/P + (1 - 1/P)/k²."""
    series = hetconv_speedup()
    assert set(series) >= {"3×3", "5×5", "7×7"}
    for label, points in series.items():
        k = int(label[0])
        assert [part for part, _ in points] == [1, 2, 4, 8, 16, 32, 64]
        for part, speedup in points:
            assert speedup == pytest.approx(1 / (1 / part + (1 - 1 / part) / k**2), rel=1e-12)
    assert dict(series["3×3"])[4] == 3


def test_xsepconv_cost_is_four_and_two_k():
    series = xsepconv_cost()
    for k, macs in series["k×k depthwise"]:
        assert macs == k * k
    for k, macs in series["XSepConv"]:
        assert macs == 4 + 2 * k
    cheaper = [k for (k, plain), (_, own) in zip(series["k×k depthwise"], series["XSepConv"]) if own < plain]
    assert cheaper == [5, 7, 9, 11]


@pytest.mark.parametrize("name", FIGURES)
def test_committed_figures_carry_these_numbers(name):
    path = ROOT / "figures" / name
    assert drawn(path) == FIGURES[name][0](), "run `make docs`"
    text = path.read_text(encoding="utf-8")
    for label in FIGURES[name][0]():
        assert label in text.partition("</metadata>")[2]
    assert not re.search(r"<dc:date>|Matplotlib", text)


@pytest.mark.parametrize("name", FIGURES)
def test_drawing_twice_gives_the_same_bytes(name, tmp_path):
    pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib")
    first, second = (draw(name, tmp_path / f"{turn}.svg") for turn in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert drawn(first) == FIGURES[name][0]()


def test_the_banner_carries_the_measured_times():
    results = Results.read()
    assert banner_times(ROOT / "figures" / NAME) == times(results), "run `make docs`"


def test_drawing_the_banner_twice_gives_the_same_bytes(tmp_path):
    pytest.importorskip("matplotlib", reason="figures are drawn with matplotlib")
    results = Results.read()
    first, second = (draw_banner(tmp_path / f"{turn}.png", results) for turn in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert banner_times(first) == times(results)
