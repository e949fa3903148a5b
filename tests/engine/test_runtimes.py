"""OpenVINO as an engine: what its forms in several number types share; and what a second form of an engine costs."""

import pytest
import torch
from torch import nn

from leanconv.engine import optimize, runtimes
from leanconv.engine.compiled import COMPILE
from leanconv.engine.runtimes import OPENVINO
from leanconv.engine.workbench import Workbench
from leanconv.kernels import inductor


def bench():
    return Workbench(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), (torch.randn(1, 3, 16, 16),), {}, 1)


def test_the_program_is_converted_once_for_all_number_types(monkeypatch):
    pytest.importorskip("openvino")
    converted, convert = [], runtimes.to_openvino
    monkeypatch.setattr(runtimes, "to_openvino", lambda program: converted.append(program) or convert(program))
    choices = optimize(bench().model, torch.randn(1, 3, 16, 16), dtype=torch.bfloat16, engines=["openvino"]).choices
    assert choices["openvino"].timing is not None
    assert choices["openvino bfloat16"].error is not None
    assert len(converted) == 1


def test_a_second_form_is_expected_to_take_less(monkeypatch):
    pytest.importorskip("openvino")
    one = bench()
    assert one.program is not None  # captured
    first = OPENVINO.estimate(one, torch.bfloat16)
    runtimes.openvino_model(one.program)
    assert OPENVINO.estimate(one, None) < first
    monkeypatch.setattr(inductor, "used", lambda: False)
    first = COMPILE.estimate(one, torch.bfloat16)
    monkeypatch.setattr(inductor, "used", lambda: True)
    assert COMPILE.estimate(one, None) == pytest.approx(first - 8.0)
