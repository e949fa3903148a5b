"""A CPU without bfloat16 instructions: `optimize` spends none of its budget on PyTorch's bfloat16 products."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import leanconv as lc
from leanconv.engine import optimize, runtimes
from leanconv.measure.hardware import number_types

REASON = "bfloat16 convolution takes 40x as long as float32"


@pytest.fixture
def without_bfloat16(monkeypatch):
    """This machine, as one on which PyTorch is slow in bfloat16."""
    monkeypatch.setattr(number_types, "slowdown", lambda dtype: 40.0)


class Products(TorchDispatchMode):
    """The number types of all convolutions and matrix products of PyTorch."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(word in str(func) for word in ("convolution", "mm", "linear")) and isinstance(args[0], torch.Tensor):
            self.seen |= {t.dtype for t in args[:2] if isinstance(t, torch.Tensor)}
        return func(*args, **(kwargs or {}))


class Net(nn.Module):
    """Blocks, a gated sum, an operator that no kernel covers, and a classifier."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.gated = lc.nn.SPLConv2d(8, 8, 3, padding=1)
        self.deep = nn.Conv3d(1, 2, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        y = self.deep(self.gated(self.first(x))[:, None]).flatten(1, 2)
        return self.head(y.mean((2, 3)))


@torch.no_grad()
def test_products_run_in_float32_and_the_answer_is_right(without_bfloat16):
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    with Products() as products:
        fast = optimize(model, x, dtype=torch.bfloat16, engines=["folded", "channels_last", "compile", "fused"])
    assert products.seen == {torch.float32, torch.float64}
    for name in ("folded", "channels_last", "compile"):
        row = next(row for row in fast.choices if row.label == f"{name} bfloat16")
        assert REASON in row.note
    row = next(row for row in fast.choices if row.label == "fused bfloat16")
    assert row.error is not None
    assert row.error < 5e-2
    torch.testing.assert_close(fast(x), model(x), rtol=0.05, atol=0.05)


def test_openvino_runs_once_where_it_computes_bfloat16_in_float32(without_bfloat16, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(runtimes, "openvino_has_bfloat16", lambda: False)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), torch.randn(1, 3, 16, 16)
    choices = optimize(model, x, dtype=torch.bfloat16, engines=["openvino"]).choices
    assert "float32 on this CPU" in choices["openvino bfloat16"].note
    assert choices["openvino bfloat16"].prepare_s is None
    assert choices["openvino"].timing is not None


def test_a_model_in_bfloat16_is_still_sped_up(without_bfloat16):
    """Its own layers are slow; the forms in float32 are tried, and their estimates do not count its slow call."""
    model, x = lc.load("leanconv:unet?base=8&levels=1").eval().bfloat16(), torch.randn(1, 3, 32, 32).bfloat16()
    choices = optimize(model, x, engines=["folded", "fused"]).choices
    assert REASON in choices["folded"].note
    assert choices["fused"].timing is not None
