"""The measured peaks of a CPU: what they are where PyTorch is slow in a number type."""

import pytest
import torch

from leanconv.measure.hardware import roofline
from leanconv.measure.hardware.roofline import Peaks, peaks


@pytest.mark.parametrize(("int8", "wide"), [(1.0, 78.0), (300.0, 78.0)], ids=["without VNNI", "with it"])
def test_the_peak_of_int8_is_at_least_that_of_float32(int8, wide, monkeypatch):
    """Without VNNI PyTorch's int8 product runs at 1 GFLOP/s: kernels were at 3888 % of the peak."""
    rates = {torch.int8: int8, torch.float32: wide}
    monkeypatch.setattr(roofline, "_measured", lambda device, dtype, *_: Peaks(rates[dtype], 10.0, str(dtype)))
    assert peaks(dtype=torch.int8).gflops == max(int8, wide)
    assert peaks(dtype=torch.float32).gflops == wide


@pytest.mark.parametrize(("ms", "calls"), [(900.0, 2), (1.0, roofline.MEASUREMENTS)])
def test_a_slow_product_is_not_called_often(ms, calls, monkeypatch):
    seen = []
    monkeypatch.setattr(roofline, "once_ms", lambda call, clock: seen.append(call) or ms + 1 / len(seen))
    assert roofline._least_ms(lambda: None, "wall") == ms + 1 / calls
    assert len(seen) == calls
