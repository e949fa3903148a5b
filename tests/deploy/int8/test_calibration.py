"""Calibration data: what is read of it, what is refused, and the loss against its definition."""

import math

import pytest
import torch
from torch import nn

from leanconv.deploy.int8 import Calibration, calibration
from leanconv.errors import BadInput


class Two(nn.Module):
    """Two inputs, one of them optional; an output of numbers and one of classes."""

    def forward(self, x, scale=None):
        y = x * (2 if scale is None else scale)
        return {"map": y, "best": y.argmax(1)}


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def shifted(model, by):
    return lambda x: model(x) + by


def test_the_loss_is_the_relative_squared_error():
    model, x, data = net(), torch.randn(2, 3, 9, 9), torch.randn(6, 3, 9, 9)
    found = Calibration(model, x, data)
    with torch.no_grad():
        y = model(data).double()
    expected = 0.1**2 * y.numel() / float((y - y.mean()).square().sum())
    assert found.loss(model) == 0
    assert found.loss(shifted(model, 0.1)) == pytest.approx(expected, rel=1e-5)
    assert found.how == "relative squared error"


def test_what_no_loss_can_be_given_for_is_infinite():
    model = net()
    found = Calibration(model, torch.randn(1, 3, 9, 9), torch.randn(2, 3, 9, 9))
    forms = [
        lambda x: model(x) * math.nan,
        lambda x: model(x)[0],
        lambda x: model(x).double(),
        lambda x: (model(x),) * 2,
    ]
    assert [found.loss(form) for form in forms] == [math.inf] * 4


def test_an_output_without_spread_is_relative_to_its_size():
    found = Calibration(nn.Identity().eval(), torch.ones(1, 3), torch.full((4, 3), 5.0))
    assert found.loss(lambda x: x + 0.5) == pytest.approx(0.01)
    zeros = Calibration(nn.Identity().eval(), torch.ones(1, 3), torch.zeros(4, 3))
    assert (zeros.loss(lambda x: x), zeros.loss(lambda x: x + 1)) == (0, math.inf)


def test_the_worst_output_counts_and_classes_by_their_share():
    model, data = Two().eval(), torch.randn(8, 5, 4, 4)
    found = Calibration(model, data[:1], data)

    def other(x):
        answer = model(x)
        answer["best"][..., 0, 0] += 1  # one of 16 pixels
        return answer

    assert found.loss(other) == pytest.approx(1 / 16)


def test_batches_become_calls_of_the_inputs_rows_and_labels_stay_out():
    rows = torch.arange(7.0)[:, None].expand(7, 3)
    found = Calibration(nn.Identity().eval(), torch.ones(2, 3), [(rows[:5], torch.zeros(5)), (rows[5:], None)])
    assert found.pictures == 7
    assert [call[0][0][:, 0].tolist() for call in found.calls] == [[0, 1], [2, 3], [4, 0], [5, 6]]
    one = Calibration(nn.Identity().eval(), torch.ones(4, 3), rows[1:2])
    assert (one.pictures, one.tensors[0][0][:, 0].tolist()) == (1, [1, 1, 1, 1])


def test_only_a_few_pictures_are_read(monkeypatch):
    read = []

    class Endless:
        def __iter__(self):
            while True:
                read.append(1)
                yield torch.randn(4, 3, 10, 10)

    monkeypatch.setattr(calibration, "NUMBERS", 20 * 300)
    assert Calibration(net(), torch.randn(1, 3, 10, 10), Endless()).pictures == 20
    assert len(read) == 5
    monkeypatch.setattr(calibration, "NUMBERS", 1)
    assert Calibration(net(), torch.randn(1, 3, 10, 10), Endless()).pictures == calibration.FEWEST
    assert Calibration(nn.Identity().eval(), torch.ones(1, 1), torch.ones(500, 1)).pictures == calibration.FEWEST
    monkeypatch.setattr(calibration, "NUMBERS", 1 << 20)
    assert Calibration(nn.Identity().eval(), torch.ones(1, 1), torch.ones(500, 1)).pictures == calibration.MOST


def test_sizes_may_differ_where_a_form_takes_any():
    axes = {0: {0: "batch", 2: "height", 3: "width"}}
    data = [torch.randn(3, 3, 8, 9), torch.randn(1, 3, 12, 7)]
    found = Calibration(net(), torch.randn(2, 3, 9, 9), data, axes=axes)
    assert [tuple(t.shape) for (t,) in found.tensors] == [(3, 3, 8, 9), (1, 3, 12, 7)]
    with pytest.raises(BadInput, match=r"height, width and rows may differ"):
        Calibration(net(), torch.randn(2, 3, 9, 9), torch.randn(2, 4, 9, 9), axes=axes)


def test_named_arguments_in_any_order():
    x, scale = torch.randn(2, 3, 4, 4), torch.rand(2, 3, 1, 1)
    found = Calibration(Two().eval(), {"x": x, "scale": scale}, [{"scale": scale * 2, "x": x}])
    assert torch.equal(found.tensors[0][0], x)
    assert torch.equal(found.tensors[0][1], scale * 2)


def test_the_metrics_drop_is_the_loss_and_the_form_takes_any_number_of_rows():
    model, images = net(), torch.randn(7, 3, 9, 9)
    rows = []

    def form(x):
        rows.append(len(x))
        return model(x) * 0.5

    def metric(candidate):
        assert not candidate.training
        answer = candidate(images)
        assert answer.shape == (7, 4, 7, 7)
        assert len(list(candidate.parameters())) == 2
        return float(answer.mean())

    found = Calibration(model, torch.randn(3, 3, 9, 9), images, metric=metric, max_loss=0.01)
    with torch.no_grad():
        assert found.loss(form) == pytest.approx(float(model(images).mean()) / 2, rel=1e-5)
    assert set(rows) == {3}
    assert found.loss(lambda x: model(x) * math.nan) == math.inf
    assert not found.accepts(0.02)
    assert found.accepts(-0.5)  # better than in float
    assert "loss of the metric" in found.judged


def test_an_answer_at_another_size_is_judged_by_what_was_measured():
    model, data = net(), torch.randn(4, 3, 9, 9)
    metric = Calibration(model, data[:1], data, metric=lambda form: 1.0)
    plain = Calibration(model, data[:1], data)
    with torch.no_grad():
        y = model(torch.randn(1, 3, 20, 20))
    form = shifted(model, 0.05)
    assert metric.agrees(form, y, y + 0.05)
    assert not metric.agrees(model, y, y + 0.05)
    assert not plain.agrees(model, y, y + 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "pass data="),
        ([], "holds no batch"),
        ([torch.zeros(0, 3, 9, 9)], "holds no image"),
        (torch.full((1, 3, 9, 9), math.nan), "NaN"),
        (torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\), the inputs \(1, 3, 9, 9\)"),
        (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), "uint8, the inputs are float32"),
        (iter([1]), "read once only"),
        (7, "give a tensor"),
    ],
)
def test_unusable_data_is_one_line(data, said):
    with pytest.raises(BadInput, match=said) as error:
        Calibration(net(), torch.randn(1, 3, 9, 9), data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"max_loss": 0}, "max_loss=0"),
        ({"max_loss": math.inf}, "above 0"),
        ({"max_loss": "a"}, "'a'"),
        ({"metric": 3}, "metric is a int"),
        ({"metric": lambda form: "good"}, "'good'; return a number"),
        ({"metric": lambda form: math.nan}, "nan for the float model"),
    ],
)
def test_unusable_limits_are_one_line(named, said):
    with pytest.raises(BadInput, match=said):
        Calibration(net(), torch.randn(1, 3, 9, 9), torch.randn(1, 3, 9, 9), **named)


def test_a_network_that_gives_nan_is_refused():
    model = nn.Conv2d(3, 2, 3).eval()
    nn.init.constant_(model.weight, 10.0)
    with pytest.raises(BadInput, match="answers to the calibration data have NaN or infinite"):
        Calibration(model, torch.zeros(1, 3, 9, 9), torch.full((1, 3, 9, 9), 3e38))


def test_nothing_of_the_callers_changes():
    model, data = net(), torch.randn(4, 3, 9, 9)
    before, kept = {k: v.clone() for k, v in model.state_dict().items()}, data.clone()
    state = torch.random.get_rng_state()
    found = Calibration(model, data[:1], torch.utils.data.DataLoader(data, batch_size=2, shuffle=True))
    found.loss(lambda x: model(x.mul_(2)))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(data, kept)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("data", "inputs", "said"),
    [
        (torch.rand(4, 3, 8, 8) * 255, torch.randn(1, 3, 8, 8), "int8 is right for the scale of the data alone"),
        (torch.rand(4, 3, 8, 8), torch.rand(1, 3, 8, 8) * 255, "int8 is right for the scale of the data alone"),
        (torch.rand(4, 3, 8, 8), torch.randn(1, 3, 8, 8), ""),
        (torch.rand(4, 3, 8, 8) * 255, torch.zeros(1, 3, 8, 8), ""),
    ],
    ids=["larger", "smaller", "alike", "zeros"],
)
def test_data_on_another_scale_is_told(data, inputs, said):
    found = Calibration(nn.Conv2d(3, 4, 3).eval(), inputs, data)
    assert (said in found.judged) if said else not found.remark


def test_a_metric_that_fails_is_one_line():
    with pytest.raises(BadInput, match="metric failed: ZeroDivisionError: division by zero"):
        Calibration(
            nn.Conv2d(3, 4, 3).eval(), torch.rand(1, 3, 8, 8), torch.rand(4, 3, 8, 8), metric=lambda form: 1 / 0
        )
