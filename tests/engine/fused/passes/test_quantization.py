"""Integer graphs: the right types, one conversion for all readers, and the float network's numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import leanconv as lc
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.elementwise import Activation, Add
from leanconv.engine.fused.ir.kinds.integer import Dequantize, Integer, Quantize
from leanconv.engine.fused.ir.kinds.values import AverageOf
from leanconv.engine.fused.lowering.implementations import plain_implementation
from leanconv.engine.fused.lowering.kernels import kernel
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.fused.passes.quantization import Levels, Quantizer, maps_of, quantizable
from leanconv.engine.fused.quantization.observe import observe
from leanconv.engine.fused.quantization.ranges import IMAGES
from leanconv.engine.workbench import Workbench
from leanconv.kernels import backend
from leanconv.ops.quantized import Quantization
from tests.engine.fused.test_candidate import randomised


def graph_of(model, *inputs):
    return fuse(to_graph(Workbench(model.eval(), inputs, {}, 1).program))


def in_torch(graph):
    return Program(graph, {node: plain_implementation(node) for node in graph.nodes if node.op.is_step})


def in_kernels(graph):
    """Kernels where there are any, and how many integer nodes have one."""
    found = {node: kernel(node) for node in graph.nodes if isinstance(node.op, Integer | Quantize | Dequantize)}
    runs = {node: found.get(node) or plain_implementation(node) for node in graph.nodes if node.op.is_step}
    return Program(graph, runs), sum(run is not None for run in found.values())


def quantizer_of(model, *inputs):
    graph = graph_of(model, *inputs)
    return Quantizer(graph, observe(graph, in_torch(graph), [inputs]))


def of_kind(graph, kind):
    return [node for node in graph if isinstance(node.op, kind)]


def unlike(a, b):
    return float((a - b).double().square().sum() / b.double().square().sum())


class Meeting(nn.Module):
    """A map with readers of both types, a gate, averages, a residual, a concatenation, a head."""

    def __init__(self, c=12):
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, 4, 1), nn.Conv2d(4, c, 1)
        self.stencil, self.product = nn.Conv2d(c, c, 3, 2, 1, groups=c), nn.Conv2d(c, c, 1)
        self.beside, self.both, self.up = nn.Conv2d(c, c, 1), nn.Conv2d(2 * c, 8, 1), nn.ConvTranspose2d(8, 8, 2, 2)
        self.out, self.head, self.last = nn.Conv2d(8, 2, 3), nn.Linear(12, 5), nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        y = F.hardswish(self.stencil(x))
        y = self.product(y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()).relu()
        z = F.silu(F.max_pool2d(x, 2))
        z = self.beside(z) + z
        both = self.both(torch.cat([y, z], 1)).relu()
        both = F.silu(self.up(both) + self.last(both))
        return self.out(both), self.head(z.mean((2, 3))), torch.cumsum(x, 2)


def test_types_and_conversions():
    torch.manual_seed(0)
    quantizer = quantizer_of(Meeting(), torch.randn(2, 3, 10, 14))
    assert len(quantizer.nodes) == 10, quantizer.left_out
    assert sum(isinstance(node.op, Add | Activation) for node in quantizer.nodes) == 2
    graph, made = quantizer.rewrite({*quantizer.nodes})
    assert [why for node in graph if (why := node.op.verify(node))] == []
    assert {node.dtype for node in (*graph.inputs, *graph.outputs)} == {torch.float32}
    assert {node.dtype for node in of_kind(graph, AverageOf)} == {torch.float32}
    for node in of_kind(graph, Integer):
        wanted = node.op.operand_dtypes(node)
        assert all(x.dtype == kind or x in graph.inputs for x, kind in zip(node.inputs, wanted, strict=True)), node
    conversions = of_kind(graph, Quantize | Dequantize)
    assert len({node.inputs[0] for node in conversions}) == len(conversions)
    # The stem's map is read by PyTorch's cumsum too; the last convolution gives float32 itself.
    assert [made[quantizer.nodes[0]]] == [node.inputs[0] for node in conversions]
    assert isinstance(graph.outputs[0].op, Integer)
    head = [node for node in graph if isinstance(node.op, Block)]
    assert len(head) == 3
    assert {node.dtype for node in head} == {torch.float32}


def test_where_kinds_meet_kernels_give_the_same_bits():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 14)
    quantizer = quantizer_of(Meeting(), x)
    graph, _ = quantizer.rewrite({*quantizer.nodes})
    fast, count = in_kernels(graph)
    if not count:
        pytest.skip(backend().why_not() or "no int8 kernels here")
    for size in ((2, 3, 10, 14), (2, 3, 10, 14), (1, 3, 6, 8), (5, 3, 22, 12)):
        x = torch.randn(size)
        exact = in_torch(graph)(x)
        for have, want in zip(fast(x), exact, strict=True):
            assert torch.equal(have, want)


@pytest.mark.parametrize("kept", range(10))
def test_one_block_in_float32_and_one_alone_in_integers(kept):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 10, 14)
    quantizer = quantizer_of(Meeting(), x)
    wide = in_torch(quantizer.graph)(x)
    for chosen in ({*quantizer.nodes} - {quantizer.nodes[kept]}, {quantizer.nodes[kept]}):
        graph, _ = quantizer.rewrite(chosen)
        assert len([n for n in of_kind(graph, Integer) if "pool" not in repr(n.op)]) == len(chosen)
        assert [why for node in graph if (why := node.op.verify(node))] == []
        for have, want in zip(in_torch(graph)(x), wide, strict=True):
            assert unlike(have, want) < 3e-3


NETWORKS = ["unet?base=8&levels=1&conv=" + conv for conv in (
    "conv", "splconv", "spconv", "hetconv(part=4)", "fuseconv", "group_pointwise", "spatial_bottleneck", "sic",
)]  # fmt: skip
ZOO = ["mobilenetv3_small_050", "resnet18", "convnext_atto"]


def network(name):
    if name not in ZOO:
        return randomised(lc.load(f"leanconv:{name}")), torch.rand(2, 3, 16, 12)
    timm = pytest.importorskip("timm", reason="needs the zoo extra")
    return randomised(timm.create_model(name, num_classes=7)), torch.rand(2, 3, 64, 48)


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in ZOO)])
def test_networks(name):
    """As near as 8 bits are, and the same bits with kernels and without, in other sizes too."""
    torch.manual_seed(0)
    model, x = network(name)
    quantizer = quantizer_of(model, x)
    graph, _ = quantizer.rewrite({*quantizer.nodes})
    exact, (fast, count) = in_torch(graph), in_kernels(graph)
    with torch.no_grad():
        assert unlike(exact(x)[0], model(x)) < 2e-2
        if not count:
            pytest.skip(backend().why_not() or "no int8 kernels here")
        for _ in range(2):  # step by step, then by the plan
            assert torch.equal(fast(x)[0], exact(x)[0])


def whole(*shape, seed=0, largest=1):
    """Weights of -1, 0 and 1, a row of each output channel at the most."""
    made = torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).float()
    return made


class Whole(nn.Module):
    """Convolutions of every kind with whole numbers as weights, and results from -128 to 127."""

    def __init__(self, c=8):
        super().__init__()
        self.stem, self.first, self.second = (
            nn.Conv2d(3, c, 3, padding=1),
            nn.Conv2d(c, c, 3, 1, 1, 1, c),
            nn.Conv2d(c, c, 1),
        )
        self.groups, self.up, self.both = (
            nn.Conv2d(c, c, 3, 1, 1, 1, 2),
            nn.ConvTranspose2d(c, c, 2, 2),
            nn.Conv2d(2 * c, 2, 1),
        )
        for seed, layer in enumerate(self.children()):
            weight = whole(*layer.weight.shape, seed=seed)
            weight = weight * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.2)
            outputs = weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight
            outputs[:, 0, 0, 0] = 1.0  # a largest weight of each output channel, which decides its scale
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(whole(*layer.bias.shape, seed=seed, largest=3))
        for layer in (self.both,):  # as many 127ths as there are steps: the scale is a power of two
            layer.weight.data.mul_(127 / 128)
            layer.bias.data.mul_(2.0)

    def forward(self, x):
        x = self.stem(x).relu()
        y = self.second(self.first(x)) + x
        y = self.up(self.groups(F.max_pool2d(y, 2)).relu())
        return self.both(torch.cat([x, y], 1))


def test_whole_numbers_are_exact():
    model = Whole().eval()
    x = torch.randint(0, 3, (2, 3, 12, 10), generator=torch.Generator().manual_seed(7)).float()
    graph = graph_of(model, x)
    values = in_torch(graph).values(x)
    maps = dict.fromkeys(y for node in quantizable(graph) for y in (*maps_of(node), node))
    largest = max(float(values[in_torch(graph).places[y]].abs().max()) for y in maps if y not in graph.outputs)
    assert largest <= 127, "the test's weights leave the levels"
    steps = Quantization(1.0, 128)
    levels = Levels(
        dict.fromkeys(graph.nodes, steps),
        {node: (steps,) * sum(len(stage.stages) if hasattr(stage, "stages") else 1 for stage in node.op.stages[:-1])
         for node in quantizable(graph) if isinstance(node.op, Block)},
    )  # fmt: skip
    quantizer = Quantizer(graph, levels)
    assert not quantizer.left_out
    integers, _ = quantizer.rewrite({*quantizer.nodes})
    with torch.no_grad():
        want = model(x)
        assert want.abs().max() > 5
        assert torch.equal(in_torch(integers)(x)[0], want)
        fast, count = in_kernels(integers)
        assert torch.equal(fast(x)[0], want), count


@torch.no_grad()
def test_a_large_batch_shows_every_map_of_a_concatenation():
    """Maps that share their levels each show all images, though the first one alone has more than are kept."""

    class Unlike(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            both = torch.cat([self.first(x).relu(), 50 * self.second(x).relu()], 1)
            return self.last(F.max_pool2d(both, 2))

    torch.manual_seed(0)
    model, x = Unlike(), torch.rand(IMAGES + 1, 3, 8, 8)
    graph = graph_of(model, x)
    levels = observe(graph, in_torch(graph), [(x,)])
    (last,) = graph.outputs
    (by,) = {levels.of[each] for each in maps_of(last)}
    assert 255 * by.scale > 0.5 * float(50 * model.second(x).relu().max())
