"""What a runtime leaves in the process that loads it."""

import ctypes
import gc
import sys

import pytest
import torch
from torch import nn

from leanconv.deploy import export
from leanconv.deploy.openvino import OpenVino
from leanconv.deploy.program import capture_flat, input_order, to_openvino
from leanconv.deploy.runtimes import open_file
from leanconv.errors import BadInput

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_signals_find_their_stack_after_models_were_freed_in_the_order_they_were_made():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), torch.randn(1, 3, 8, 8)
    made = [OpenVino(to_openvino(capture_flat(net, (x,), {}))) for _ in range(3)]
    while made:
        torch.testing.assert_close(made.pop(0)(x)[0], net(x).detach(), rtol=1e-4, atol=1e-4)
        gc.collect()
        assert signal_stack_is_mapped()


ANSWERS = {
    "a map": lambda y, x: y,
    "a number without a size": lambda y, x: y.sum(),
    "whole numbers": lambda y, x: y.argmax(1),
    "truths": lambda y, x: y > 0,
    "a view": lambda y, x: y.flatten(1),
    "an input": lambda y, x: x,
    "a view of an input": lambda y, x: x.flatten(2),
    "several": lambda y, x: (y, x, y.flatten(1), y.sum()),
}


class Answers(nn.Module):
    def __init__(self, pick):
        super().__init__()
        self.conv, self.pick = nn.Conv2d(3, 4, 3), pick

    def forward(self, x, scale):
        return self.pick(self.conv(x) * scale, x)


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_program_of_fixed_sizes_gives_tensors_that_no_later_call_writes(kind):
    net, given = Answers(ANSWERS[kind]).eval(), (torch.randn(2, 3, 8, 8), torch.rand(1))
    program = capture_flat(net, given, {})
    order = input_order(program)
    run = OpenVino(to_openvino(program), order=order, shapes=[x.shape for x in given])
    assert (run._new_answer is None) == (kind in ("an input", "a view of an input", "several"))
    calls = [(torch.randn(2, 3, 8, 16)[..., ::2], torch.rand(1)) for _ in range(3)]
    found = [run(*call) for call in calls for _ in range(2)]
    for i, answers in enumerate(found):
        want = net(*calls[i // 2])
        for answer, exact in zip(answers, want if isinstance(want, tuple) else (want,), strict=True):
            assert answer.dtype == exact.dtype
            torch.testing.assert_close(answer, exact.detach(), rtol=1e-4, atol=1e-4)
    taken = [answer.data_ptr() for answers in found for answer in answers]
    assert len(set(taken)) == len(taken)
    with pytest.raises(RuntimeError):
        run(torch.randn(1, 3, 8, 8), torch.rand(1))


class Halves(nn.Module):
    """Takes even sides only: an odd one comes back one pixel larger than it was."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x):
        return self.up(self.down(x)) + x


def test_openvino_refuses_sizes_that_do_not_go_through(tmp_path):
    """OpenVINO 2026.4 answered with 32x32, and then the next image with the answer of the one before."""
    model = Halves().eval()
    export(model, torch.randn(1, 3, 32, 32), tmp_path / "m.xml", dynamic=("batch", "height", "width"))
    run = open_file(tmp_path / "m.xml", threads=1)
    first, second = torch.randn(2, 1, 3, 32, 32)
    run(first)
    for size in (33, 35):
        with pytest.raises(BadInput, match=f"does not take inputs of 1x3x{size}x{size}"):
            run(torch.randn(1, 3, size, size))
        torch.testing.assert_close(run(second), model(second).detach(), rtol=1e-4, atol=1e-5)
    other = torch.randn(2, 3, 20, 24)
    torch.testing.assert_close(run(other), model(other).detach(), rtol=1e-4, atol=1e-5)
