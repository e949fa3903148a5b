"""Dynamic shapes: programs that contain sizes run fused at every size, and give up sizes rather than speed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.deploy.verify import difference
from leanconv.engine import workbench
from leanconv.engine.fused import candidate
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.capture import dynamic_shapes
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.ir.kinds.data_movement import Pad
from leanconv.engine.fused.ir.kinds.values import Size
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.optimize import optimize
from leanconv.engine.workbench import Workbench
from leanconv.nn import DRConv2d, ODConv2d, SpatialBottleneckConv2d

C = 8


class Read(nn.Module):
    """`read(layers, x)` between two convolutions."""

    def __init__(self, read, **layers):
        super().__init__()
        self.read, self.layers = read, nn.ModuleDict(layers)
        self.stem, self.out = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, 5, 1)

    def forward(self, x):
        return self.out(self.read(self.layers, self.stem(x)).relu())


def attention(m, x):
    n, c, h, w = x.shape
    q, k, v = m["qkv"](x).reshape(n, 3, 2, c // 2, h * w).transpose(-1, -2).unbind(1)
    return x + F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w)


def windows(m, x):
    n, c, h, w = x.shape
    padded = F.pad(x, (0, -w % 4, 0, -h % 4))
    rows, columns = padded.shape[2] // 4, padded.shape[3] // 4
    each = padded.view(n, c, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c).softmax(1)
    back = each.view(n, rows, columns, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return back.reshape(n, c, 4 * rows, 4 * columns)[:, :, :h, :w]


def decoded(m, x):
    up = m["up"](F.max_pool2d(x, 2))
    up = F.pad(up, (0, x.shape[3] - up.shape[3], 0, x.shape[2] - up.shape[2]))
    return up + F.interpolate(F.avg_pool2d(x, 3, 2, 1), x.shape[2:], mode="bilinear")


def channels_mixed(m, x):
    h, w = x.shape[2:]
    return x * (x.sum((2, 3), keepdim=True) / (h * w)).sigmoid() + x.new_ones(h, w) / (h + w)


def grids(m, x):
    """Coordinates of every pixel, as in models that warp or embed by position."""
    rows = torch.linspace(-1, 1, x.shape[2], dtype=x.dtype)[:, None]
    return x * rows + torch.linspace(end=0.5, start=0, steps=x.shape[3]) + torch.linspace(3, 1, 1)


def coordinates(m, x):
    """The grid of both coordinates, as two more channels of a map and by itself."""
    n, _, h, w = x.shape
    rows, columns = torch.linspace(-1, 1, h)[:, None].expand(n, 1, h, w), torch.linspace(0, 1, w).expand(n, 1, h, w)
    grid = torch.cat([rows, columns], 1)
    return m["mix"](torch.cat([x, grid], 1)) * grid.exp().mean(1, keepdim=True)


MODELS = {
    "odconv": lambda: Read(lambda m, x: m["a"](x), a=ODConv2d(C, C, 2, 2, padding=1)),
    "drconv": lambda: Read(lambda m, x: m["a"](x), a=DRConv2d(C, C, 3, padding=1, regions=3)),
    "attention": lambda: Read(attention, qkv=nn.Conv2d(C, 3 * C, 1)),
    "windows": lambda: Read(windows),
    "brought to a size": lambda: Read(decoded, up=nn.ConvTranspose2d(C, C, 2, 2)),
    "divided by sizes": lambda: Read(channels_mixed),
    "grids": lambda: Read(grids),
    "coordinates": lambda: Read(coordinates, mix=nn.Conv2d(C + 2, C, 3, padding=1)),
}


@pytest.fixture(autouse=True)
def _pytorch_alone(monkeypatch):
    """Sizes stand in calls of PyTorch alone, and compiling kernels takes longer than these tests may."""
    monkeypatch.setattr(workbench, "MEASURING_S", 0.0)
    for kind, forms in IMPLEMENTATIONS.items():
        monkeypatch.setitem(IMPLEMENTATIONS, kind, [each for each in forms if each.name in ("aten", "matrix")])


@torch.no_grad()
@pytest.mark.parametrize(("name", "batch"), [*((name, 1) for name in MODELS), ("odconv", 2), ("attention", 2)])
def test_every_size(name, batch):
    model = MODELS[name]().eval()
    form = FUSED.prepare(Workbench(model, (torch.randn(batch, 3, 20, 24),), {}, 1), None)
    for n, h, w in ((batch, 20, 24), (batch, 13, 17), (batch, 24, 20), (3 - batch, 20, 24), (3, 15, 30), (0, 20, 24)):
        for _ in range(2):  # step by step, then by a plan
            x = torch.randn(n, 3, h, w)
            error = difference(model(x), form(x))
            assert error.ok(1e-4), f"{(n, h, w)}: {error}"


@torch.no_grad()
def test_a_spatial_bottleneck_that_was_measured_where_its_ratio_does_not_divide():
    model = Read(lambda m, x: m["a"](x), a=SpatialBottleneckConv2d(C, C, 3, padding=1)).eval()
    form = FUSED.prepare(Workbench(model, (torch.randn(1, 3, 21, 24),), {}, 1), None)
    for shape in ((1, 3, 21, 24), (1, 3, 20, 24), (2, 3, 13, 17), (3, 3, 14, 15)):
        x = torch.randn(shape)
        for _ in range(2):
            assert difference(model(x), form(x)).ok(1e-4)


class Seen(TorchDispatchMode):
    """The names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_what_depends_on_sizes_alone_is_made_once_for_each_and_is_the_callers_own():
    class Grid(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, C, 3, padding=1)

        def forward(self, x):
            grid = torch.linspace(0, 1, x.shape[3])
            return self.stem(x) + grid, grid

    model = Grid().eval()
    form = FUSED.prepare(Workbench(model, (torch.randn(1, 3, 12, 12),), {}, 1), None)
    for shape in ((1, 3, 12, 12), (2, 3, 9, 15)):
        x = torch.randn(shape)
        for again in range(4):
            with Seen() as seen:
                made = form(x)
            assert ("arange" in seen.names) == (not again)
            assert difference(model(x), made).ok(1e-4)
            made[1].fill_(7)


@torch.no_grad()
def test_a_capture_that_takes_too_long_leaves_the_batch_open(monkeypatch):
    monkeypatch.setattr(dynamic_shapes, "OPENING_S", 0.0)
    model = MODELS["attention"]().eval()
    form = FUSED.prepare(Workbench(model, (torch.randn(1, 3, 20, 24),), {}, 1), None)
    for n in (1, 4, 0):
        x = torch.randn(n, 3, 20, 24)
        error = difference(model(x), form(x))
        assert error.ok(1e-4), f"{n}: {error}"
    with pytest.raises(RuntimeError, match="size"):
        form(torch.randn(1, 3, 24, 20))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_only_programs_with_sizes_are_captured_again(monkeypatch):
    asked = []
    monkeypatch.setattr(
        candidate, "_with_dynamic_shapes", lambda bench, graph, direct: asked.append(bench.model) or graph
    )
    plain = nn.Sequential(
        nn.Conv2d(3, C, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 4), nn.Softmax(1)
    )
    grid = Read(lambda m, x: x + torch.linspace(0, 1, x.shape[3]))
    for model in (plain.eval(), grid.eval()):
        FUSED.prepare(Workbench(model, (torch.randn(1, 3, 12, 12),), {}, 1), None)
    assert asked == [grid]


@torch.no_grad()
def test_pads_of_convolutions_stay_in_their_blocks():
    """Speed at this size counts more than other sizes; where those need other pads, the given model answers."""

    def read(m, x):
        return attention(m, m["a"](F.pad(x, (0, 1 + x.shape[3] % 2, 0, 1))))

    model = Read(read, a=nn.Conv2d(C, C, 2), qkv=nn.Conv2d(C, 3 * C, 1)).eval()
    bench = Workbench(model, (torch.randn(2, 3, 12, 12),), {}, 1)
    kinds = [type(node.op) for node in fuse(to_graph(*dynamic_shapes.capture_dynamic(bench, spatial=True))).nodes]
    assert Size in kinds
    assert Pad not in kinds
    form, x = FUSED.prepare(bench, None), torch.randn(1, 3, 9, 14)
    assert difference(model(x), form(x)).ok(1e-4)


def test_optimize_uses_it_at_other_sizes():
    torch.manual_seed(0)
    model = MODELS["attention"]().eval()
    fast = optimize(model, torch.randn(1, 3, 12, 16), engines=("fused",), budget_s=20)
    form = fast._any[1][0]
    for shape in ((2, 3, 9, 7), (1, 3, 16, 12), (3, 3, 12, 16)):
        x = torch.randn(shape)
        for _ in range(3):
            assert difference(model(x).detach(), fast(x)).ok(1e-4)
        if fast.engine == "fused":
            assert fast._checked[(x.shape, x.dtype, x.device)] is form
