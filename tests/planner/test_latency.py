"""The timers: layers alone, layers in their network, and what is said of noise."""

import pytest
import torch
from torch import nn

from leanconv.convert import apply_, plan
from leanconv.planner import in_context
from leanconv.planner.alone import Alone
from leanconv.planner.in_context import InContext
from leanconv.planner.latency import Figure, Latencies
from leanconv.progress import Progress

BAR = Progress("search", visible=False)


def test_a_figure_is_a_median_and_its_error():
    assert Figure.of([1.0, 2.0, 3.0]) == Figure(2.0, pytest.approx(1.253 * 1.0 / 1.349 / 3**0.5))
    assert Figure.of([5.0]) == Figure(5.0, 0.0)


def test_noise_is_said_where_it_decides():
    def found(error, saved):
        rows = {"a": {"conv": Figure(10.0, error), "x": Figure(10.0 - saved, error)}}
        return Latencies(20.0, rows).noise()

    assert found(0.01, 0.001) == ""
    assert found(1.0, 9.0) == ""
    assert "too noisy to decide" in found(1.0, 0.5)
    assert "a as x" in found(1.0, 0.5)


class Cheap(nn.Module):
    """Stands where a 7x7 stood, and does next to nothing."""

    def forward(self, x):
        return x


def test_savings_of_layers_add_up_to_those_of_the_whole_network():
    def made(whole):
        rows = {name: {"conv": Figure(4.0, 0.1), "sic": Figure(3.0, 0.1)} for name in ("a", "b")}
        found = Latencies(10.0, rows, {"sic": whole})
        found.agree_with_wholes()
        return found

    found = made(5.0)  # 2 ms added up, and 5 ms in truth
    assert [found.saved_ms(name, "sic") for name in "ab"] == pytest.approx([2.5, 2.5])
    assert found.layers["a"]["sic"].error_ms == pytest.approx(0.25)
    assert "save 20.0% of the latency, and its whole network 50.0%" in found.notes[0]
    assert made(7.9).notes == []  # near enough: no remark
    for other in (11.0, 9.9, 1.0):  # another sign, or too far
        assert made(other).layers["a"]["sic"] == Figure(3.0, 0.1)


def test_layers_alone():
    model = nn.Sequential(nn.Conv2d(16, 16, 7, padding=3), nn.ReLU(), nn.Conv2d(16, 16, 7, padding=3)).eval()
    other = nn.Sequential(Cheap(), nn.ReLU(), Cheap()).eval()
    timer = Alone(model, torch.randn(1, 16, 40, 40), ["0", "2"], "no halide")
    found = timer.layers({"cheap": other}, {"cheap": {"0"}}, BAR)
    assert set(found.layers["0"]) == {"conv", "cheap"}
    assert set(found.layers["2"]) == {"conv"}
    assert found.layers["0"]["conv"].ms > 5 * found.layers["0"]["cheap"].ms
    assert found.layers["0"]["conv"].ms == pytest.approx(found.layers["2"]["conv"].ms, rel=0.7)
    assert found.dense_ms > found.layers["0"]["conv"].ms
    assert found.uniform["cheap"] == pytest.approx(found.dense_ms - found.saved_ms("0", "cheap"))
    assert "no halide" in found.notes[0]
    wholes = timer.wholes({"fast": other, "same": model}, BAR)
    assert wholes["fast"].share < 0.4
    assert wholes["same"].share == pytest.approx(1.0, abs=0.3)
    assert wholes["fast"].low <= wholes["fast"].share <= wholes["fast"].high


def test_a_layer_that_is_called_twice_alone():
    conv = nn.Conv2d(8, 8, 5, padding=2)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.Conv2d(8, 8, 5, padding=2)).eval()
    found = Alone(model, torch.randn(1, 8, 40, 40), ["0", "3"], "").layers({}, {}, BAR)
    assert found.layers["0"]["conv"].ms > 1.3 * found.layers["3"]["conv"].ms


@pytest.mark.slow
def test_layers_in_their_network(monkeypatch):
    pytest.importorskip("halide", reason="needs the cpu extra")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1),
    ).eval()  # fmt: skip
    x, to, names = torch.randn(1, 3, 64, 64), "group_pointwise(part=4)", ["2", "6", "8"]

    def swapped(layers):
        made = nn.Sequential(*model).eval()
        apply_(made, [swap for swap in plan(made, x, to=to) if swap.name in layers])
        return made

    timer = InContext(model, x, names)
    found = timer.layers({to: swapped(names)}, {to: set(names)}, BAR)
    assert all(set(row) == {"conv", to} and row["conv"].ms > row[to].ms for row in found.layers.values())
    assert sum(row["conv"].ms for row in found.layers.values()) < 1.1 * found.dense_ms
    # Two layers of three: the sum of the layers predicts what the whole network takes.
    measured = timer.wholes({"mixed": swapped(["2", "8"])}, BAR)["mixed"]
    predicted = found.dense_ms - found.saved_ms("2", to) - found.saved_ms("8", to)
    assert predicted / found.dense_ms == pytest.approx(measured.share, rel=0.25)
    # The same shapes are not timed again, whatever their weights; other shapes are.
    monkeypatch.setattr(in_context, "_rounds", lambda *_: pytest.fail("timed again"))
    nn.init.normal_(model[2].weight)
    again = InContext(model, x, names).layers({to: swapped(names)}, {to: set(names)}, BAR)
    assert again.layers == found.layers
    assert again.uniform == found.uniform
    with pytest.raises(BaseException, match="timed again"):
        InContext(model, x[..., :48], names).layers({}, {}, BAR)


def test_what_the_engine_does_not_take():
    with pytest.raises(Exception, match="float32 and bfloat16"):
        InContext(nn.Sequential(nn.Conv2d(3, 4, 3)).double(), torch.randn(1, 3, 8, 8).double(), ["0"])
