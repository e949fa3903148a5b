"""The fused engine on whole networks: the float64 model's answer, in any shape, from any number of threads."""

import copy
import gc
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.engine import optimize, workbench
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.capture import dynamic_shapes
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.workbench import Workbench
from leanconv.kernels import backend


@pytest.fixture(autouse=True)
def quick_choice(monkeypatch):
    """Nothing is measured: a kernel runs wherever there is one, next to PyTorch's implementation.

    Of dynamic shapes the batch alone is tried here; capture/test_dynamic_shapes.py tries height and width.
    """
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    monkeypatch.setattr(dynamic_shapes, "OPENING_S", 0.0)
    monkeypatch.setitem(
        IMPLEMENTATIONS, Block, [each for each in IMPLEMENTATIONS[Block] if each.name in ("aten", "kernel")]
    )


@pytest.fixture
def torch_only(monkeypatch):
    """PyTorch and oneDNN alone: compiling the kernels of a whole network takes longer than a test may."""
    for kind, forms in IMPLEMENTATIONS.items():
        monkeypatch.setitem(
            IMPLEMENTATIONS, kind, [each for each in forms if each.name in ("aten", "onednn", "matrix")]
        )


def randomised(model):
    """The model in eval mode, with BatchNorm statistics as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return model.eval()


def fused(model, *inputs, **named):
    return FUSED.prepare(Workbench(model, inputs, named, torch.get_num_threads()), None)


@torch.no_grad()
def assert_right(form, model, x, factor=4.0):
    """At most `factor` times the model's own error; whole networks add up roundings."""
    exact = copy.deepcopy(model).double()(x.double())
    error, own = (form(x) - exact).abs().max(), (model(x) - exact).abs().max()
    assert error <= max(factor * own, 1e-6 * exact.abs().max()), f"{error:.2e}, the model's own {own:.2e}"


UNETS = ("conv", "splconv", "spconv", "hetconv(part=4)", "depthwise_separable", "group_pointwise", "sic", "fuseconv")


@pytest.mark.parametrize("conv", UNETS)
def test_unets(conv):
    model = randomised(lc.load(f"leanconv:unet?base=8&levels=1&conv={conv}"))
    x = torch.randn(2, 3, 16, 12)
    form = fused(model, x)
    assert_right(form, model, x)
    assert_right(form, model, torch.randn(1, 3, 24, 34))  # another shape, the same program


OTHERS = ("gmconv", "doconv", "lhconv", "odconv", "drconv", "topological", "psconv", "spatial_bottleneck")


@pytest.mark.parametrize("conv", OTHERS)
def test_operators_without_a_pattern_run_too(conv, torch_only):
    model = randomised(lc.load(f"leanconv:unet?base=8&levels=1&conv={conv}"))
    x = torch.randn(1, 3, 16, 16)
    assert_right(fused(model, x), model, x)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "inception_next_atto", "resnet10t", "efficientvit_b0"])
def test_networks_of_others(name, torch_only):
    timm = pytest.importorskip("timm", reason="needs the zoo extra")
    model, x = randomised(timm.create_model(name, num_classes=7)), torch.randn(1, 3, 64, 64)
    form = fused(model, x)
    assert_right(form, model, x)
    assert_right(form, model, torch.randn(2, 3, 64 if "vit" in name else 96, 64))


def test_a_mobile_network_on_kernels():
    timm = pytest.importorskip("timm", reason="needs the zoo extra")
    model, x = randomised(timm.create_model("mobilenetv3_small_050", num_classes=7)), torch.randn(1, 3, 64, 64)
    form = fused(model, x)
    for size in ((1, 3, 64, 64), (1, 3, 64, 64), (3, 3, 96, 64)):
        assert_right(form, model, torch.randn(size))


class Odd(nn.Module):
    """A network without tuned shapes: odd widths, branches read twice, sums, gates, a nested answer."""

    def __init__(self, c=13):
        super().__init__()
        self.stem = nn.Conv2d(3, c, 3, 2, 1)
        self.norm = nn.BatchNorm2d(c)
        self.dw = nn.Conv2d(c, c, (1, 5), padding=(0, 2), groups=c)
        self.pw = nn.Conv2d(c, 7, 1, bias=False)
        self.inner = nn.BatchNorm2d(7)
        self.join = nn.Conv2d(c + 7, c, 1)
        self.squeeze, self.excite = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)
        self.strided = nn.Conv2d(c, 5, 2, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(5, 3, 2, 2)
        self.head = nn.Linear(c, 4)

    def forward(self, x, scale=1.0):
        x = F.silu(self.norm(self.stem(x)))
        y = F.gelu(self.inner(self.pw(F.relu6(self.dw(x)))))
        z = F.relu(self.join(torch.cat([y, x], 1)) + x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(z.mean((2, 3), keepdim=True)))))
        z = self.join(torch.cat([y, z * gate], 1)) * torch.sigmoid(z)
        up = self.up(F.pad(F.hardswish(self.strided(z)), (1, 0, 0, 0)))
        return {"map": up * scale, "parts": (y[:, 2:5], self.head(z.mean((2, 3)))), "scale": scale}


def test_an_odd_network():
    model, x = randomised(Odd()), torch.randn(2, 3, 21, 17)
    form = fused(model, x, scale=0.5)
    for size in ((2, 3, 21, 17), (1, 3, 8, 9), (5, 3, 2, 1)):
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(form(x, scale=0.5), model(x, scale=0.5), rtol=1e-4, atol=1e-5)
    strided = torch.randn(2, 3, 21, 34)[..., ::2]
    with torch.no_grad():
        torch.testing.assert_close(form(strided, scale=0.5), model(strided, scale=0.5), rtol=1e-4, atol=1e-5)


def test_optimize_chooses_it_and_shows_the_blocks(always):
    model, x = randomised(lc.load("leanconv:unet?base=8&levels=1&conv=splconv")), torch.randn(1, 3, 16, 16)
    fast = optimize(model, x, engines=("fused",), budget_s=240)
    assert fast.engine == "fused", str(fast.choices)
    assert all(row.block in str(fast.choices) for row in fast.choices.blocks.rows)
    kinds = " ".join(row["block"] for row in fast.choices.to_dict()["blocks"])
    assert "dw3x3 dw3x3 d2 1x1+relu" in kinds
    want = {n: model(torch.ones(n, 3, 16, 16)).detach() for n in (0, 1, 3)}
    for n, y in want.items():
        for _ in range(2):
            torch.testing.assert_close(fast(torch.ones(n, 3, 16, 16)), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        fast(torch.ones(1, 3, 8, 32)), model(torch.ones(1, 3, 8, 32)).detach(), rtol=1e-4, atol=1e-5
    )


@pytest.fixture
def small(always):
    """An optimised network of kernels and PyTorch steps; a call takes some ten microseconds."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 13, 1),
        nn.MaxPool2d(2),
        nn.Tanh(),
        nn.Conv2d(13, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    ).eval()
    fast = optimize(model, torch.randn(1, 3, 8, 8), engines=("fused",), budget_s=240)
    assert fast.engine == "fused", str(fast.choices)
    return fast, model


def test_eight_threads_call_one_optimised_model(small):
    """Shapes of all kinds at once: measured, met before, new to two threads at the same time."""
    fast, model = small
    shapes = [(1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 6, 10), (3, 3, 12, 4)]
    inputs = [torch.randn(shapes[i % 4]) for i in range(160)]
    start = threading.Barrier(8)

    def work(part):
        start.wait()
        return [fast(x) for x in part]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, [inputs[i::8] for i in range(8)]))
    for i, part in enumerate(found):
        for x, y in zip(inputs[i::8], part, strict=True):
            torch.testing.assert_close(y, model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system does not tell what a process holds")
def test_ten_thousand_calls_take_no_more_memory(small):
    fast, _ = small
    inputs = [torch.randn(1, 3, 8, 8), torch.randn(2, 3, 8, 8)]  # the measured shape and another

    def held():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before = 0
    for calls in (1000, 10_000):
        before = held()
        for i in range(calls):
            fast(inputs[i % 2])
    grown = held() - before
    assert grown < 1 << 20, f"{grown} bytes more"


def test_without_halide_it_says_how_to_get_the_speed(monkeypatch, torch_only):
    missing = "halide is not installed: pip install 'leanconv[cpu]'"
    monkeypatch.setattr("leanconv.kernels.cpu.availability.why_not", lambda: missing)
    fast = optimize(Odd().eval(), torch.randn(1, 3, 9, 9), engines=("fused",), budget_s=240)
    assert "pip install 'leanconv[cpu]'" in fast.choices["fused"].note
    assert "pip install 'leanconv[cpu]'" in fast.choices.blocks.note


@pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels")
def test_an_unknown_arithmetic_is_told(monkeypatch):
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "Direct")
    fast = optimize(nn.Conv2d(3, 8, 1).eval(), torch.randn(1, 3, 8, 8), engines=("fused",), budget_s=5)
    assert fast.choices.rows[-1].note.startswith("failed: LEANCONV_ARITHMETIC is 'Direct'; it may be lean")


def test_what_it_is_not_for():
    model = nn.Sequential(nn.Linear(3, 4)).eval()
    assert "no 2-D convolution" in optimize(model, torch.randn(2, 3), engines=("fused",)).choices["fused"].note
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval().double()
    row = optimize(model, torch.randn(2, 3, 4, 4).double(), engines=("fused",)).choices["fused"]
    assert "float32 and bfloat16, not float64" in row.note
