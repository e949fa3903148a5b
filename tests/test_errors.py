"""Whose error it is: the traceback tells a model's own from one of the code that calls it, or watches it."""

import pytest
import torch
from torch import nn

from leanconv.errors import by_model, error_line
from leanconv.measure.counting import record
from leanconv.models.unet import unet
from leanconv.nn import get


class Lost(nn.Module):
    def forward(self, x):
        raise KeyError("two\nlines")


def caught(call, *arguments):
    with pytest.raises(Exception) as found:
        call(*arguments)
    return found.value


def test_a_models_own_error_with_its_place():
    line = Lost.forward.__code__.co_firstlineno + 1
    for call in (Lost(), lambda x: record.record(nn.Sequential(nn.ReLU(), Lost()), x)):
        error = caught(call, torch.zeros(1, 3, 8, 8))
        assert by_model(error)
        assert error_line(error) == f"KeyError: 'two\\nlines' (test_errors.py, line {line}, in forward)"


def test_layers_of_torch_and_ours_are_the_models():
    for layer in (nn.Conv2d(4, 8, 3), get("hetconv")(4, 8, 3), nn.Sequential(unet(4, 1, base=4, levels=1))):
        error = caught(layer, torch.zeros(1, 3, 8))
        assert by_model(error), error
    assert error_line(caught(nn.Conv2d(4, 8, 3), torch.zeros(1, 3, 8, 8))).startswith("RuntimeError: Given groups=1")


def test_what_we_do_while_a_model_runs_is_ours(monkeypatch):
    monkeypatch.setattr(record, "tensor_bytes", lambda tensor: {}["lost"])
    assert not by_model(caught(record.record, nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)))
    assert not by_model(caught(lambda: {}["lost"]))
    assert error_line(ValueError()) == "ValueError"
