"""The drawings: valid SVG, colours by variable only, a mark and a tooltip for each number, nobody's text as markup."""

import re
import xml.etree.ElementTree as ET

import pytest

from leanconv.report.plots import SVG, Curve, Point, _unbeaten, curves, frontier


def marks(svg: str) -> list[str]:
    return [use.get("data-tip") for use in ET.fromstring(svg).iter(f"{{{SVG}}}use") if use.get("class") == "mark"]


def test_each_value_has_a_mark_that_says_it():
    drawn = curves("plot-a", "Loss", [Curve("unet", 0, [1, 3], [0.5, 0.25])], x_label="epoch", y_label="loss")
    assert marks(drawn) == ["unet: loss 0.5 at epoch 1", "unet: loss 0.25 at epoch 3"]


def test_colours_are_variables_of_the_page():
    drawn = frontier("plot-f", "f", [Point("a", 0, 10, 1, 0.7), Point("b", 9, 12, 1, 0.8)], y_label="Dice")
    assert not re.findall(r"#[0-9a-f]{6}", drawn)
    assert {"var(--s0)", "var(--s1)", "var(--ink)", "var(--muted)", "var(--grid)"} <= set(
        re.findall(r"var\(--\w+\)", drawn)
    )


def test_two_drawings_share_no_id_and_every_reference_has_one():
    one = curves("plot-a", "x", [Curve("r", 0, [1, 2], [1, 2])], x_label="epoch", y_label="loss")
    two = curves("plot-b", "x", [Curve("r", 0, [1, 2], [1, 2])], x_label="epoch", y_label="loss")
    ids = re.findall(r'\bid="([^"]+)"', one + two)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', one + two)) <= {(i, "") for i in ids} | {
        ("", i) for i in ids
    }


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac{", 'a"b&c', "ß × 中"])
def test_names_are_text_and_never_markup_nor_formulas(name):
    drawn = frontier("plot-f", name, [Point(name, 0, 10, 1, 0.7)], y_label="Dice")
    root = ET.fromstring(drawn)
    assert root.get("aria-label") == name
    assert not list(root.iter(f"{{{SVG}}}script"))
    assert any((text.text or "").startswith(name[:20]) for text in root.iter(f"{{{SVG}}}text"))


def test_marks_stand_in_the_order_of_their_numbers():
    drawn = frontier("plot-f", "f", [Point("slow", 0, 40, 1, 0.9), Point("fast", 1, 10, 1, 0.2)], y_label="Dice")
    place = {
        use.get("data-tip").split(":")[0]: (float(use.get("x")), float(use.get("y")))
        for use in ET.fromstring(drawn).iter(f"{{{SVG}}}use")
        if use.get("class") == "mark"
    }
    assert place["slow"][0] > place["fast"][0]
    assert place["slow"][1] < place["fast"][1]  # SVG counts downwards


def test_names_of_equal_points_do_not_cover_each_other():
    points = [Point(f"model {i}", i, 10, 0.1, 0.7) for i in range(4)]
    texts = [
        float(re.search(r"translate\([-\d.]+ ([-\d.]+)\)|", t.get("transform", "")).group(1) or t.get("y"))
        for t in ET.fromstring(frontier("plot-f", "f", points, y_label="Dice")).iter(f"{{{SVG}}}text")
        if (t.text or "").startswith("model")
    ]
    assert len(texts) == 4
    assert min(b - a for a, b in zip(sorted(texts), sorted(texts)[1:])) >= 10


def test_unbeaten_is_what_nobody_beats_in_both():
    points = [
        Point("a", 0, 10, 0, 0.5),
        Point("b", 1, 20, 0, 0.4),
        Point("c", 2, 30, 0, 0.9),
        Point("d", 3, 10, 0, 0.6),
    ]
    assert [p.name for p in _unbeaten(points)] == ["d", "c"]


@pytest.mark.parametrize("points", [[(0.0, 0.0)], [(1e-3, 1.0), (1e4, 0.0)], [(5.0, 0.5)] * 3])
def test_any_numbers_can_be_drawn(points):
    drawn = frontier("plot-f", "f", [Point(str(i), i, ms, ms / 2, y) for i, (ms, y) in enumerate(points)], y_label="D")
    assert len(marks(drawn)) == len(points)


def ticks(svg: str, axis: str) -> list[float]:
    """The numbers that an axis shows; `axis`: "x" or "y"."""
    groups = [g for g in ET.fromstring(svg).iter(f"{{{SVG}}}g") if re.search(rf"-{axis}tick_\d+$", g.get("id", ""))]
    return [float(text.text.replace("−", "-")) for g in groups for text in g.iter(f"{{{SVG}}}text")]


def test_axes_start_at_zero_so_that_small_differences_look_small():
    near = [Point("a", 0, 10, 0.1, 0.70), Point("b", 1, 11, 0.1, 0.71)]
    drawn = frontier("plot-f", "f", near, y_label="Dice")
    assert min(ticks(drawn, "y")) == min(ticks(drawn, "x")) == 0
    line = curves("plot-c", "c", [Curve("a", 0, [1, 2], [0.70, 0.71])], x_label="epoch", y_label="Dice")
    assert min(ticks(line, "y")) == 0
    below = curves("plot-c", "c", [Curve("a", 0, [1, 2], [-0.5, 0.5])], x_label="epoch", y_label="loss")
    assert min(ticks(below, "y")) < 0


def test_a_log_axis_says_so():
    far = [Point("a", 0, 1, 0.1, 0.7), Point("b", 1, 100, 0.1, 0.7)]
    assert "log scale" in frontier("plot-f", "f", far, y_label="Dice")
    assert "log scale" not in frontier("plot-f", "f", far[:1], y_label="Dice")


def test_the_drawing_for_phones_has_larger_letters_on_the_same_width():
    drawn = [frontier("plot-f", "f", [Point("a", 0, 10, 1, 0.7)], y_label="D", narrow=n) for n in (False, True)]
    widths = [float(ET.fromstring(svg).get("viewBox").split()[2]) for svg in drawn]
    assert widths[1] < 0.6 * widths[0]
    assert marks(drawn[0]) == marks(drawn[1])
