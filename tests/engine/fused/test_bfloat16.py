"""The fused engine in bfloat16: as accurate as the bfloat16 model, and float32 where that costs nothing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.engine import optimize, workbench
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.elementwise import Cast
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.reductions import Average
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.ir.kinds.values import AverageOf
from leanconv.engine.fused.lowering import autotune as room
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.fused.passes.precision import lower_precision
from leanconv.engine.workbench import Workbench
from leanconv.kernels import Target, backend
from leanconv.kernels.cpu.compilation import build
from leanconv.measure.hardware import number_types
from tests.cpus import HASWELL, SAPPHIRE_RAPIDS, ZEN4
from tests.engine.fused.test_candidate import Odd, randomised

HALF = torch.bfloat16
ONEDNN, NO_ONEDNN = torch.ops.mkldnn._is_mkldnn_bf16_supported(), "oneDNN has no bfloat16 on this CPU"
FORMS = dict(IMPLEMENTATIONS)
BLOCKS = FORMS[Block]


@pytest.fixture(autouse=True)
def quick_choice(monkeypatch):
    """Nothing is measured: a kernel runs wherever there is one."""
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    monkeypatch.setitem(
        IMPLEMENTATIONS, Block, [each for each in IMPLEMENTATIONS[Block] if each.name in ("aten", "kernel")]
    )


@torch.no_grad()
def assert_right(form, model, x):
    """At most twice the bfloat16 model's own error."""
    exact, short = copy.deepcopy(model).double()(x.double()), copy.deepcopy(model).to(HALF)(x.to(HALF))
    error, own = ((y - exact).abs().max() for y in (form(x), short))
    assert error <= 2 * own, f"{error:.2e}, the model's own {own:.2e} in bfloat16"


@pytest.mark.parametrize("name", ["splconv", "hetconv(part=4)", "fuseconv", "mobilenetv3_small_050"])
def test_networks(name):
    if "mobilenet" in name:
        timm = pytest.importorskip("timm", reason="needs the zoo extra")
        model, x = randomised(timm.create_model(name, num_classes=7)), torch.randn(2, 3, 64, 48)
    else:
        model, x = randomised(lc.load(f"leanconv:unet?base=12&levels=1&conv={name}")), torch.randn(2, 3, 16, 12)
    form = FUSED.prepare(Workbench(model, (x,), {}, 1), HALF)
    short = copy.deepcopy(model).to(HALF)
    own = FUSED.prepare(Workbench(short, (x.to(HALF),), {}, 1), None)
    assert form(x).dtype == torch.float32
    assert own(x.to(HALF)).dtype == HALF
    for size in (x.shape, x.shape, (1, 3, 32, 24)):  # the first time, by its plan, and another shape
        x = torch.randn(size).to(HALF)
        assert_right(lambda x: form(x.float()), model, x)
        assert_right(own, model, x)


class Products(nn.Module):
    """Stencils, then a 1×1: a chain, a residual, a gate between them, groups, a concatenation."""

    def __init__(self, c=24):
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 5, 1)
        self.stencils = nn.ModuleList(nn.Conv2d(c, c, 3, padding=d, dilation=d, groups=c) for d in (1, 2, 1))
        self.groups, self.pair = nn.Conv2d(c, c, 3, 2, 1, groups=4), nn.Conv2d(2 * c, 2 * c, (1, 3), groups=2 * c)
        self.products = nn.ModuleList(nn.Conv2d(i, c, 1) for i in (c, c, c, c, 2 * c))

    def forward(self, x):
        (a, b, c), (p, q, r, s, t), x = self.stencils, self.products, self.stem(x)
        y = q(b(a(x)).relu()) + x
        z = p(F.silu(c(y)) * y.mean((2, 3), keepdim=True).sigmoid())
        return self.out(s(self.groups(r(z)).relu()).relu()), t(self.pair(torch.cat([y, z], 1))).mean((2, 3))


@pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels")
@pytest.mark.parametrize("slowdown", [pytest.param(1.0, marks=pytest.mark.skipif(not ONEDNN, reason=NO_ONEDNN)), 40.0])
def test_products_on_a_matrix_unit(slowdown, monkeypatch):
    """On a processor with a matrix unit: stencils in kernels, products in oneDNN, in float32 if bfloat16 is slow."""
    monkeypatch.setattr(number_types, "slowdown", lambda dtype: slowdown)
    monkeypatch.setitem(IMPLEMENTATIONS, Block, [each for each in BLOCKS if each.name in ("aten", "kernel+onednn")])
    monkeypatch.setattr(room, "PREFERRED", ("kernel+onednn",))
    model, x = Products().eval(), torch.randn(2, 3, 14, 12)
    for cpu in (ZEN4, HASWELL):
        without = FUSED.prepare(Workbench(model, (x,), {}, 1, Target(cpu)), HALF)
        assert {row.chosen for row in without.blocks.rows} == {"aten"}
    form = FUSED.prepare(Workbench(model, (x,), {}, 1, Target(SAPPHIRE_RAPIDS)), HALF)
    chosen = [row.block for row in form.blocks.rows if row.chosen == "kernel+onednn"]
    assert len(chosen) >= 3, str(form.blocks)
    for size in (x.shape, x.shape, (1, 3, 9, 11), (1, 3, 9, 11)):
        x = torch.randn(size).to(HALF).float()
        exact, short = copy.deepcopy(model).double()(x.double()), copy.deepcopy(model).to(HALF)(x.to(HALF))
        for y, right, own in zip(form(x), exact, short, strict=True):
            assert (y - right).abs().max() <= 2 * (own - right).abs().max()


@pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels")
@pytest.mark.parametrize("name", ["products", "splconv", "conv"])
def test_products_on_tiles(name, monkeypatch):
    """On a processor with a matrix unit, emulated where there is none: every product of a U-Net, other sizes too."""
    if not build.compiler():
        pytest.skip("no C compiler")
    for kind in (Block, GatedSum, Upsample):
        monkeypatch.setitem(IMPLEMENTATIONS, kind, [each for each in FORMS[kind] if each.name in ("aten", "tiles")])
    monkeypatch.setattr(room, "PREFERRED", ("tiles",))
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(2, 3, 14, 12)
    if name != "products":
        model, x = randomised(lc.load(f"leanconv:unet?base=12&levels=1&conv={name}")), torch.randn(2, 3, 16, 12)
    for cpu in (ZEN4, HASWELL):
        without = FUSED.prepare(Workbench(model, (x,), {}, 1, Target(cpu)), HALF)
        assert "tiles" not in {row.chosen for row in without.blocks.rows}
    form = FUSED.prepare(Workbench(model, (x,), {}, 1, Target(SAPPHIRE_RAPIDS)), HALF)
    chosen = {row.block: row.chosen for row in form.blocks.rows}
    left = {block for block, by in chosen.items() if by != "tiles" and "pool" not in block}
    assert len(chosen) - len(left) >= 3
    assert not left or name == "products", left  # it has groups, a gate, stencils alone
    for size in (x.shape, x.shape, (1, 3, 32, 24), (1, 3, 32, 24)):
        x = torch.randn(size).to(HALF).float()
        exact, short = copy.deepcopy(model).double()(x.double()), copy.deepcopy(model).to(HALF)(x.to(HALF))
        answers = (
            [(form(x), exact, short)] if isinstance(exact, torch.Tensor) else zip(form(x), exact, short, strict=True)
        )
        for y, right, own in answers:
            assert (y - right).abs().max() <= 2 * (own - right).abs().max()


def test_an_odd_network():
    model, x = randomised(Odd()), torch.randn(2, 3, 21, 17)
    form = FUSED.prepare(Workbench(model, (x,), {"scale": 0.5}, 1), HALF)
    for size in ((2, 3, 21, 17), (1, 3, 8, 9)):
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(form(x, scale=0.5), model(x, scale=0.5), rtol=2e-2, atol=2e-2)


class Meeting(nn.Module):
    """Operators of PyTorch that read maps, averages and constants together."""

    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 1)
        self.register_buffer("shift", torch.randn(1, 6, 1, 1))

    def forward(self, x, y):
        z = self.stem(x)
        mean = z.mean((2, 3), keepdim=True)
        z = F.interpolate(z - mean + self.shift, scale_factor=2, mode="bilinear")
        a, b = torch.split(z / (1 + mean.abs()), 3, 1)
        return self.last(torch.cat([b, a], 1)).softmax(1), mean.flatten(1) + y, z.argmax(1)


def test_where_kinds_meet():
    torch.manual_seed(0)
    model, x, y = Meeting().eval(), torch.randn(2, 3, 9, 8), torch.randn(2, 6)
    bench = Workbench(model, (x, y), {}, 1)
    graph = lower_precision(fuse(to_graph(bench.program)), HALF)
    kinds = {node.name: node.dtype for node in graph}
    assert [node.dtype for node in graph.inputs] == [HALF, torch.float32]
    assert [node.dtype for node in graph.outputs] == [HALF, torch.float32, torch.int64]
    assert {node.dtype for node in graph if isinstance(node.op, Average | AverageOf)} == {torch.float32}, kinds
    assert any(isinstance(node.op, Cast) for node in graph)
    form = FUSED.prepare(bench, HALF)
    with torch.no_grad():
        for _ in range(2):
            found, want = form(x, y), model(x, y)
            torch.testing.assert_close(found[0], want[0], rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(found[1], want[1], rtol=1e-2, atol=1e-2)
            assert (found[2] == want[2]).float().mean() > 0.95


def test_half_models_are_tried_in_float32_too():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, groups=1), nn.ReLU()).eval(), torch.randn(1, 3, 9, 9)
    rows = optimize(copy.deepcopy(model).to(HALF), x.to(HALF), engines=("fused", "folded"), budget_s=240).choices
    assert [row.label for row in rows] == ["eager", "folded", "fused", "fused float32"]
    assert rows["fused float32"].error <= rows["fused"].tolerance
    rows = optimize(model, x, dtype=HALF, engines=("fused",), budget_s=240).choices
    assert [row.label for row in rows] == ["eager", "fused", "fused bfloat16"]
    assert 1e-6 < rows["fused bfloat16"].error < 5e-2
    rows = optimize(model.half(), x.half(), engines=("fused",), budget_s=240).choices
    assert "not float16" in rows["fused"].note
    assert rows["fused float32"].error is not None
