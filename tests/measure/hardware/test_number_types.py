"""Types for which a CPU has no instructions: what PyTorch loses there is measured, and named."""

import pytest
import torch

from leanconv.measure.hardware import number_types, roofline
from leanconv.measure.hardware.number_types import has_onednn, slow_type, slowdown


def test_float32_is_never_slow(monkeypatch):
    monkeypatch.setattr(number_types, "slowdown", lambda dtype: 1000.0)
    assert slow_type(torch.float32) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reason_names_type_and_ratio(dtype, monkeypatch):
    monkeypatch.setattr(number_types, "slowdown", lambda asked: 39.6 if asked is dtype else 1.0)
    assert slow_type(dtype).startswith(f"PyTorch's {str(dtype)[6:]} convolution takes 40x as long as float32")
    monkeypatch.setattr(number_types, "slowdown", lambda asked: 1.2)
    assert slow_type(dtype) == ""


def test_the_ratio_is_that_of_the_better_layouts(monkeypatch):
    ms = {
        (torch.float32, torch.contiguous_format): 2.0,
        (torch.float32, torch.channels_last): 1.0,
        (torch.bfloat16, torch.contiguous_format): 30.0,
        (torch.bfloat16, torch.channels_last): 5.0,
    }
    monkeypatch.setattr(number_types, "_convolution_ms", lambda dtype, layout: ms[dtype, layout])
    assert slowdown.__wrapped__(torch.bfloat16) == 5.0


def test_a_type_without_any_convolution_is_slow(monkeypatch):
    def refuse(dtype, layout):
        if dtype is torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return 1.0

    monkeypatch.setattr(number_types, "_convolution_ms", refuse)
    assert slowdown.__wrapped__(torch.float16) == float("inf")


def test_this_machine_is_measured():
    assert 0 < slowdown.__wrapped__(torch.bfloat16) < float("inf")


@pytest.mark.parametrize("supported", [True, False])
def test_onednn_is_asked_whether_it_has_the_type(supported, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert has_onednn(torch.bfloat16) == (supported and torch.backends.mkldnn.is_available())
    assert not has_onednn(torch.float64)


def test_peaks_of_a_type_without_instructions_are_those_of_float32(monkeypatch):
    """So profile and the engines' comparison run in bfloat16 on any CPU."""
    monkeypatch.setattr(number_types, "slowdown", lambda dtype: 40.0)
    found = roofline._measured.__wrapped__("cpu", torch.bfloat16, torch.get_num_threads(), "wall")
    assert "float32" in found.source
    assert found.gflops > 0
