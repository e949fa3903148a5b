"""Fusion: the blocks that it finds in networks, by their labels."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.engine.fused.capture.export import NotCaptured, to_graph
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.call import Call
from leanconv.engine.fused.ir.kinds.data_movement import Cat, Shuffle, Slice
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add, Affine
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.ir.kinds.linear import Linear
from leanconv.engine.fused.ir.kinds.max_pool import MaxPool
from leanconv.engine.fused.ir.kinds.reductions import Average, Sum
from leanconv.engine.fused.ir.kinds.upsample import Upsample
from leanconv.engine.fused.lowering.autotune import autotune
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, plain_implementation
from leanconv.engine.fused.lowering.primitives import primitive
from leanconv.engine.fused.lowering.samples import sample
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.workbench import Workbench
from leanconv.ops.gated_sum import gated_pointwise
from leanconv.ops.grouped import grouped
from leanconv.ops.pool import max_pool
from leanconv.ops.separable import Separable, separable
from leanconv.ops.upsample import upsample


def graph_of(model, x):
    return fuse(to_graph(Workbench(model.eval(), (x,), {}, 1).program))


@functools.cache  # graphs are read alone
def unet(conv):
    torch.manual_seed(0)
    return graph_of(lc.load(f"leanconv:unet?base=8&levels=1&conv={conv}"), torch.randn(2, 3, 8, 12))


def blocks(graph):
    return [repr(node.op) for node in graph if node.op.is_step and not isinstance(node.op, Slice)]


EXPECTED = {
    "conv": ["[8->8 3x3+relu]", "[16->8 3x3+relu]", "[16->8 transposed 2x2 ]"],
    "depthwise_separable": ["[8->8 dw3x3 1x1+relu]", "[16->8 dw3x3 1x1+relu]"],
    "depthwise_separable(multiplier=2)": ["[8->8 (dw3x3 | dw3x3) 1x1+relu]", "[16->8 (dw3x3 | dw3x3) 1x1+relu]"],
    "splconv": ["[4->8 dw3x3 dw3x3 d2 1x1+relu]", "[4->8 gated sum relu]", "[8->8 gated sum relu]"],
    "spconv": ["[4->8 g2 3x3 || 1x1]", "[8->8 gated sum relu]"],
    "hetconv(part=4)": ["[8->8 interleaved g4 3x3+relu || 1x1]", "[16->8 interleaved g4 3x3+relu || 1x1]"],
    "group_pointwise": ["[8->8 g4 3x3 1x1+relu]"],
    "fuseconv": ["[8->8 (dw1x3 | dw3x1) 1x1+relu]", "[16->8 (dw1x3 | dw3x1) 1x1+relu]"],
}


@pytest.mark.parametrize("conv", EXPECTED)
def test_what_is_found_in_a_unet(conv):
    graph = unet(conv)
    found = blocks(graph)
    assert all(block in found for block in EXPECTED[conv]), "\n".join(found)
    gone = (Affine, Activation, Cat, Sum, Average, Call, Add, Shuffle)
    assert not any(isinstance(node.op, gone) for node in graph), str(graph)


RUN = {
    Add: lambda form, w, x, n: separable(x[:1], w, form, x[1]),
    Block: lambda form, w, x, n: (
        separable(x[:n], w, form, *_rest(form, x[n:]))
        if isinstance(form, Separable)
        else grouped(x[:n], w, form, x[n] if form.residual else None)
    ),
    GatedSum: lambda form, w, x, n: gated_pointwise(
        x[0], x[2 : 2 + n], w, form, x[1].flatten(1), [m.flatten(1) for m in x[2 + n :]]
    ),
    Upsample: lambda form, w, x, n: upsample(x, w, form),
    MaxPool: lambda form, w, x, n: max_pool(x[0], form),
}


def _rest(form, rest):
    return rest[0] if form.residual else None, rest[-1].flatten(1) if form.gate else None


def assert_primitives(graph, least):
    """For every node with a primitive: the primitive's reference agrees with the node in PyTorch."""
    count = 0
    for node in graph:
        if (found := primitive(node)) is None:
            assert type(node.op) not in RUN, f"no primitive for {node!r}"
            continue
        inputs = [sample(x) for x in node.inputs]
        want = next(form for form in IMPLEMENTATIONS[type(node.op)] if form.name == "aten").make(node)(*inputs)
        y, average = RUN[type(node.op)](*found, inputs, getattr(node.op, "concat", 1))
        if isinstance(want, tuple):
            torch.testing.assert_close(average, want[1].flatten(1), rtol=1e-4, atol=1e-5)
            want = want[0]
        torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
        count += 1
    assert count >= least


@pytest.mark.parametrize("conv", [*EXPECTED, "sic"])
def test_blocks_in_the_words_of_the_primitives(conv):
    assert_primitives(unet(conv), 8)


class Zoo(nn.Module):
    """One of each part of MobileNets, ResNets and Inception networks."""

    def __init__(self, c=6):
        super().__init__()
        self.stem = nn.Conv2d(3, c, 3, 2, 1)
        self.norm = nn.BatchNorm2d(c)
        self.deep = nn.Conv2d(c, c, 5, 2, 2, groups=c)
        self.one, self.two = nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)
        self.down = nn.Conv2d(c, c, 1, 2)
        self.dense = nn.Conv2d(c, c, 3, 1, 1)
        self.row, self.column = (
            nn.Conv2d(2, 2, (1, 5), padding=(0, 2), groups=2),
            nn.Conv2d(2, 2, (5, 1), padding=(2, 0), groups=2),
        )
        self.mix = nn.Conv2d(c, c, 1)
        self.scale = nn.Parameter(torch.rand(1, c, 1, 1))
        self.ensure_nhwc = nn.Conv2d(c, c, 2, groups=c)
        self.point = nn.Conv2d(c, c, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = F.relu6(self.deep(x))
        y = y * F.hardsigmoid(self.two(F.relu(self.one(F.adaptive_avg_pool2d(y, 1)))))
        x = F.relu(self.norm(self.dense(self.mix(y)) + self.down(x)))
        a, b, c = x.split((2, 2, 2), 1)
        x = self.mix(torch.cat([a, self.row(b), self.column(c)], 1)) * self.scale + x
        x = self.point(F.silu(self.ensure_nhwc(F.pad(x, (0, 1, 1, 0)))))
        return self.pool(x).mean((2, 3))


def test_what_is_found_elsewhere():
    torch.manual_seed(0)
    graph = graph_of(Zoo(), torch.randn(2, 3, 22, 27))
    assert blocks(graph) == [
        "[3->6 3x3/2+hardswish]",
        "[6->6 dw5x5/2+relu6]",
        "[6->2 1x1+relu]",
        "[2->6 1x1+hardsigmoid]",
        "[6->6 1x1 gate]",
        "[6->6 3x3]",
        "[6->6 1x1/2 residual relu]",
        "[6->6 (- | dw1x5 | dw5x1) 1x1 residual]",
        "[6->6 dw2x2+silu 1x1]",
        "[max pool 3x3/2]",
        "aten.flatten.using_ints",
    ], "\n".join(blocks(graph))
    assert_primitives(graph, 10)


def in_torch(graph):
    return Program(graph, {node: plain_implementation(node) for node in graph if node.op.is_step})


class Sums(nn.Module):
    """Sums that blocks take and sums that they do not."""

    def __init__(self, act):
        super().__init__()
        self.act, self.one, self.two = (
            act,
            nn.Conv2d(6, 6, 3, padding=1),
            lc.nn.make("hetconv(part=2)", 6, 6, 3, padding=1),
        )

    def forward(self, x):
        x = x + self.act(self.two(x))  # the activation stands inside
        x = self.act(x + self.act(self.one(x)))
        return x, self.act(x + x).mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize("act", [F.relu, F.silu, F.hardswish], ids=["relu", "silu", "hardswish"])
def test_sums_behind_an_activation_stay_sums(act):
    """A block that adds behind its activation has no kernel."""
    torch.manual_seed(0)
    model, x = Sums(act).eval(), torch.randn(2, 6, 7, 9)
    graph, name = graph_of(model, x), act.__name__
    assert blocks(graph)[:4] == [
        f"[6->6 interleaved g2 3x3+{name} || 1x1]", "[add]", f"[6->6 3x3+{name}]", f"[add {name}]",
    ]  # fmt: skip
    assert_primitives(graph, 5)
    for size in (x, torch.randn(1, 6, 4, 5)):
        for found, want in zip(in_torch(graph)(size), model(size), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"block": True}, {"multiplier": 2, "bias": False}], ids=str)
def test_several_filters_a_channel_are_those_of_the_model(options):
    """Filters move next to others of their number, and the columns of the 1x1 with them."""
    torch.manual_seed(0)
    layer = lc.nn.DepthwiseSeparableConv2d(6, 8, 3, padding=1, **{"multiplier": 3, **options})
    model, x = nn.Sequential(nn.Conv2d(3, 6, 1), layer, nn.BatchNorm2d(8), nn.ReLU()).eval(), torch.randn(2, 3, 9, 7)
    graph = graph_of(model, x)
    assert any(block.count("dw3x3") == layer.multiplier for block in blocks(graph)), blocks(graph)
    torch.testing.assert_close(in_torch(graph)(x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert_primitives(graph, 1)


class Shortcut(nn.Module):
    """ResNet's shortcut without weights: every other pixel, and channels of zeros."""

    def __init__(self, cut=lambda x: x[:, :, ::2, ::2], sides=(0, 0, 0, 0, 1, 3), value=0.0, mode="constant"):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.cut = cut
        self.pad = lambda x: F.pad(x, sides, mode, value)

    def forward(self, x):
        return F.relu(self.conv(x) + self.pad(self.cut(x)))


@torch.no_grad()
@pytest.mark.parametrize(
    "cut",
    [lambda x: x[:, :, ::2, ::2], lambda x: x[..., ::2][:, :, ::2], lambda x: x[:, :, ::2][:, :, :, 0::2]],
    ids=["both", "columns first", "from zero"],
)
def test_a_shortcut_with_channels_of_zeros_is_a_1x1(cut):
    torch.manual_seed(0)
    model, x = Shortcut(cut).eval(), torch.randn(2, 4, 8, 10)
    graph = graph_of(model, x)
    assert blocks(graph) == ["[4->8 3x3/2+relu]", "[8->8 3x3]", "[4->8 1x1/2 residual relu]"]
    assert_primitives(graph, 3)
    for size in (x, torch.randn(1, 4, 7, 5)):
        torch.testing.assert_close(in_torch(graph)(size)[0], model(size), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "model",
    [
        lambda: Shortcut(value=1.0),
        lambda: Shortcut(lambda x: x[:, :, 1::2, ::2]),
        lambda: Shortcut(lambda x: x[:, :, :8:2, ::2]),
        lambda: Shortcut(lambda x: x[:, :, ::2, :4], sides=(0, 1, 0, 0, 1, 3)),
        lambda: Shortcut(lambda x: torch.cat([x, x, x], 1)[:, ::2, ::2, ::2], sides=(0, 0, 0, 0, 1, 1)),
        lambda: Shortcut(lambda x: torch.cat([x] * 3, 1)[:, :, ::2, ::2], sides=(0, 0, 0, 0, -2, -2)),
    ],
    ids=["ones", "from one", "to a row", "columns cut off", "channels", "fewer channels"],
)
def test_another_shortcut_stays_as_it_is(model):
    torch.manual_seed(0)
    model, x = model().eval(), torch.randn(2, 4, 8, 10)
    graph = graph_of(model, x)
    assert not any("1x1" in block for block in blocks(graph))
    torch.testing.assert_close(in_torch(graph)(x)[0], model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_infinity_stays_in_its_channel_by_direct_arithmetic():
    torch.manual_seed(0)
    model, x = Shortcut().eval(), torch.randn(1, 4, 8, 10)
    model.conv = nn.Conv2d(4, 8, 3, 2, 1, groups=4).eval()
    x[0, 0, 4, 4] = float("inf")
    form = lc.optimize(model, torch.randn(1, 4, 8, 10), engines=["fused"], arithmetic="direct", progress=False)
    assert form.engine == "fused"
    assert torch.equal(form(x).isfinite(), model(x).isfinite())


def test_a_wide_shortcut_is_no_product():
    """It would take longer than PyTorch's copies."""
    graph = graph_of(lc.load("leanconv:resnet20_cifar"), torch.randn(8, 3, 32, 32))
    assert sum("aten.pad" in block for block in blocks(graph)) == 2


class Beside(nn.Module):
    """A grouped convolution, a 1×1 beside it, and a map that is added."""

    def __init__(self, padding=(1, 1, 1, 1), stride=1, groups=4, kernel=3, dilation=1):
        super().__init__()
        self.padding, self.stride = padding, stride
        self.spatial = nn.Conv2d(16, 16, kernel, stride, groups=groups, dilation=dilation)
        self.point, self.down = nn.Conv2d(16, 16, 1, stride), nn.Conv2d(16, 16, 2, stride, bias=False)

    def forward(self, x):
        z = self.down(F.pad(x, (0, 1, 0, 1)))
        return F.relu(self.spatial(F.pad(x, self.padding)) + self.point(x) + z)


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "[16->16 g4 3x3 || 1x1 residual relu]"),
        ({"stride": 2}, "[16->16 g4 3x3/2 || 1x1 residual relu]"),
        # The 1×1 reads another pixel than the one under the kernel's middle.
        ({"padding": (2, 0, 0, 2)}, "[16->16 1x1 residual]"),
        ({"padding": (0, 2, 1, 1), "stride": 2}, "[16->16 1x1/2 residual]"),
        # No tap in the middle.
        ({"kernel": 2, "dilation": 2}, "[16->16 1x1 residual]"),
        ({"kernel": 2, "dilation": 2, "groups": 1}, "[16->16 1x1 residual]"),
        ({"kernel": 2, "padding": (1, 0, 1, 0)}, "[16->16 1x1 residual]"),
    ],
    ids=["plain", "strided", "to one side", "strided, to one side", "even, dilated", "even, dilated, dense", "even"],
)
def test_a_1x1_beside_groups(options, label):
    torch.manual_seed(0)
    model, x = Beside(**options), torch.randn(2, 16, 8, 10)
    graph = graph_of(model, x)
    assert label in blocks(graph), blocks(graph)
    torch.testing.assert_close(in_torch(graph)(x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert_primitives(graph, len(blocks(graph)))


@torch.no_grad()
def test_a_1x1_of_another_stride_is_not_beside():
    """On a map of one pixel both have one size; at others they have not."""
    torch.manual_seed(0)
    model = Beside(stride=2).eval()
    model.point.stride = (1, 1)
    graph = graph_of(model, torch.randn(2, 16, 1, 1))
    assert not [node for node in graph if isinstance(node.op, Block) and node.op.parallel]


def test_what_groups_read_themselves_the_1x1_beside_them_does_not():
    """Then the dense kernel that both equal needs no more bits than either."""
    for conv in ("spconv", "hetconv(part=4)"):
        found = [node.op for node in unet(conv) if isinstance(node.op, Block) and node.op.parallel]
        assert found
        for block in found:
            assert not block.parallel.weight[(*block.stages[0].channels(), 0, 0)].any()


@torch.no_grad()
def test_a_sum_that_no_block_takes_is_one_step():
    """With its activation and its average; before, four calls of PyTorch in each block of a residual SPConv network."""
    torch.manual_seed(0)
    model, x = lc.load("leanconv:resnet20_cifar?conv=splconv").eval(), torch.randn(1, 3, 32, 32)
    graph = graph_of(model, x)
    found = blocks(graph)
    torch.testing.assert_close(in_torch(graph)(x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert found.count("[add relu]") == 7, found
    assert sum("1x1/2 residual relu" in each for each in found) == 2, found  # shortcuts with channels of zeros
    assert not [each for each in found if each.startswith("Activation")]
    assert found.count("Average()") == 2, found  # of pools whose last window may be smaller


class Pools(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.pool, self.point = nn.AvgPool2d(**options), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.point(self.pool(x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"kernel_size": 2}, "[6->4 dw2x2/2 1x1]"),
        ({"kernel_size": (3, 1), "stride": 1, "padding": (1, 0)}, "[6->4 dw3x1 1x1]"),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, "aten.avg_pool2d.default"),
        ({"kernel_size": 2, "ceil_mode": True}, "aten.avg_pool2d.default"),
        ({"kernel_size": 2, "divisor_override": 3}, "aten.avg_pool2d.default"),
    ],
    ids=["plain", "padded", "zeros do not count", "a smaller window at the end", "another divisor"],
)
def test_an_average_pool_is_a_stencil(options, label):
    torch.manual_seed(0)
    model, x = Pools(**options), torch.randn(2, 6, 9, 10) + 100
    graph = graph_of(model, x)
    assert label in blocks(graph), blocks(graph)
    for size in (x, torch.randn(1, 6, 7, 5)):
        torch.testing.assert_close(in_torch(graph)(size)[0], model(size), rtol=1e-4, atol=1e-4)
    if label.startswith("["):
        assert_primitives(graph, 1)


def test_an_average_pool_of_integers_stays_a_call():
    class Counts(nn.Module):
        def forward(self, x):
            return F.avg_pool2d((10 * x).long(), 2).float()

    model, x = Counts().eval(), torch.rand(1, 2, 6, 6)
    graph = graph_of(model, x)
    assert "aten.avg_pool2d.default" in blocks(graph)
    torch.testing.assert_close(in_torch(graph)(x)[0], model(x))


def test_what_somebody_else_reads_is_not_absorbed():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            z = self.norm(y).relu()
            return z + y, self.last(z), y

    found = blocks(graph_of(Reads(), torch.randn(1, 3, 5, 5)))
    assert found[:2] == ["[3->4 3x3]", "[4->4 dw1x1+relu]"]
    assert "[4->4 1x1]" in found


def test_models_that_keep_state_are_refused():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.conv(x)

    with pytest.raises(NotCaptured, match="writes into"):
        to_graph(Workbench(Counts().eval(), (torch.randn(1, 3, 4, 4),), {}, 1).program)


class Reads(nn.Module):
    """A model of one expression and one convolution."""

    def __init__(self, read):
        super().__init__()
        self.read, self.conv = read, nn.Conv2d(10, 10, 1)

    def forward(self, x):
        return self.read(self.conv, x)


@torch.no_grad()
@pytest.mark.parametrize(
    ("read", "x"),
    [
        (lambda conv, x: conv(x)[:, -3:], torch.randn(2, 10, 4, 5)),
        (lambda conv, x: conv(x)[:, -5:-2], torch.randn(2, 10, 4, 5)),
        (lambda conv, x: conv(x)[:, -100:4], torch.randn(2, 10, 4, 5)),
        (lambda conv, x: conv(x)[:, 4:100], torch.randn(2, 10, 4, 5)),
        (lambda conv, x: conv(x)[:, 7:7], torch.randn(2, 10, 4, 5)),
        (lambda conv, x: conv(x * (1 / 255.0)), torch.randint(0, 255, (2, 10, 4, 5), dtype=torch.uint8)),
        (lambda conv, x: conv(x + 0.5), torch.randint(0, 255, (2, 10, 4, 5))),
    ],
)
def test_slices_and_integers(read, x):
    model = Reads(read).eval()
    graph = fuse(to_graph(Workbench(model, (x,), {}, 1).program))
    runs, _ = autotune(graph, seconds=0.0, forms={kind: forms[:2] for kind, forms in IMPLEMENTATIONS.items()})
    torch.testing.assert_close(Program(graph, runs)(x)[0], model(x), rtol=1e-4, atol=1e-4)


class Head(nn.Module):
    """A classifier of two layers, with ops between them that no kernel computes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(20)
        self.first, self.second = nn.Linear(8, 20), nn.Linear(20, 7, bias=False)

    def forward(self, x):
        return self.second(self.norm(F.gelu(self.first(self.conv(x).mean((2, 3))))))


@torch.no_grad()
def test_linear_layers_are_products_of_one_pixel():
    torch.manual_seed(0)
    model, x = Head(), torch.randn(2, 3, 9, 9)
    graph = graph_of(model, x)
    assert blocks(graph)[1] == "[8->20 1x1+gelu]"
    assert "[20->7 1x1]" in blocks(graph)
    assert not any(isinstance(node.op, Linear) for node in graph)
    program = Program(graph, autotune(graph, seconds=0.0)[0])
    for n in (2, 1, 0, 5, 1):
        x = torch.randn(n, 3, 9, 9)
        torch.testing.assert_close(program(x)[0], model(x), rtol=1e-4, atol=1e-5)
