"""What a runtime leaves in the process that loads it."""

import ctypes
import gc
import sys

import pytest
import torch
from torch import nn

from leanconv.deploy.program import capture_flat, to_openvino
from leanconv.deploy.runtimes import OpenVino

openvino = pytest.importorskip("openvino", reason="needs the export extra: openvino")


class SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2)."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack_is_mapped() -> bool:
    """Whether this thread's alternate signal stack, if it has one, is memory of this process."""
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    if not stack.start:
        return True
    with open("/proc/self/maps") as maps:
        spans = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    return any(low <= stack.start < high for low, high in spans)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_signals_find_their_stack_after_models_were_freed_in_the_order_they_were_made():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(1, 3, 8, 8)
    made = [OpenVino(to_openvino(capture_flat(net, (x,), {}))) for _ in range(3)]
    while made:
        torch.testing.assert_close(made.pop(0)(x)[0], net(x).detach(), rtol=1e-4, atol=1e-4)
        gc.collect()
        assert signal_stack_is_mapped()
