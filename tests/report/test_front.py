"""The drawing of a search's front."""

import pytest

from leanconv.errors import BadInput
from leanconv.planner.found import Point, Report, Trial
from leanconv.report.front import draw_front

pytest.importorskip("matplotlib", reason="needs the report extra")


def report(quantity="latency"):
    def trial(name, ms, harm, **more):
        return Trial(name, {"a": "x"}, {quantity: ms}, {quantity: ms}, harm, harm, meets=True, **more)

    trials = [trial("plan 1", 6.0, 0.02, chosen=True), trial("x_1 $ everywhere", 5.0, 0.5)]
    trials.append(trial("broken everywhere", 4.0, float("inf")))
    front = [Point(0.5, 0.4, 3), Point(0.8, 0.001, 1), Point(1.0, 0.0, 0)]
    return Report("latency<=60%", {quantity: 10.0}, "KL", "fit", 8, trials=trials, front=front)


@pytest.mark.parametrize(("suffix", "head"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".html", b"<!doctype")])
def test_files_that_may_be_replaced(tmp_path, suffix, head):
    path = tmp_path / f"front{suffix}"
    draw_front(report(), path, title="a <b> & $c")
    first = path.read_bytes()
    assert first.startswith(head)
    draw_front(report(), path, title="a <b> & $c")
    assert path.read_bytes() == first


def test_the_page_has_picture_and_numbers(tmp_path):
    page = draw_front(report(), tmp_path / "front.html", title="a <b>").read_text()
    assert "<b>" not in page
    assert "a &lt;b&gt;" in page
    assert page.count("<svg") == 1
    assert "plan 1" in page
    assert "x_1 $ everywhere" in page


def test_nothing_measured_but_the_dense_network(tmp_path):
    found = report("macs")
    found.trials, found.front = [], [Point(1.0, 0.0, 0)]
    assert draw_front(found, tmp_path / "front.svg").exists()


def test_a_foreign_file_stays(tmp_path):
    path = tmp_path / "front.svg"
    path.write_text("<svg/>")
    with pytest.raises(BadInput, match="did not write it"):
        draw_front(report(), path)
