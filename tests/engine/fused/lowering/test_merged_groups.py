"""Groups that are merged, on vectors and on tiles: PyTorch's numbers in float, the same bits in integers."""

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.elementwise import Add
from leanconv.engine.fused.ir.kinds.integer import Integer
from leanconv.engine.fused.lowering import autotune
from leanconv.engine.fused.lowering.implementations import (
    IMPLEMENTATIONS,
    KERNEL,
    Implementation,
    plain_implementation,
)
from leanconv.engine.fused.lowering.kernels import KernelRun, kernel, merged, split_on_tiles, tiles
from leanconv.engine.fused.lowering.samples import sample
from leanconv.engine.fused.passes.precision import lower_precision
from leanconv.engine.fused.stored import open_program, save_program
from leanconv.kernels import Target, backend
from leanconv.kernels.cpu.compilation.build import compiler
from leanconv.ops.grouped import Grouped
from tests.cpus import HASWELL, SAPPHIRE_RAPIDS, ZEN4
from tests.engine.fused.passes.test_fusion import graph_of
from tests.engine.fused.passes.test_quantization import in_torch, network, quantizer_of
from tests.kernels.tolerance import assert_no_worse

pytestmark = [
    pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels"),
    pytest.mark.skipif(not compiler(), reason="no C compiler"),
]


class Groups(nn.Module):
    """A group convolution, alone or with a 1×1 behind."""

    def __init__(self, c, o, groups, *, behind=0, **options):
        super().__init__()
        self.spatial = nn.Conv2d(c, o, 3, groups=groups, **options)
        self.behind = nn.Conv2d(o, behind, 1) if behind else nn.Identity()

    def forward(self, x):
        return self.behind(self.spatial(x)).relu()


class Added(nn.Module):
    def forward(self, x):
        return (x + x.flip(3)).relu()


def layers():
    return {
        "narrow": (Groups(16, 16, 4, padding=1), 16),
        "wider": (Groups(64, 32, 8, padding=1, stride=2), 64),
        "a 1x1 behind": (Groups(24, 40, 4, behind=20, padding=1), 24),
        "interleaved, beside a 1x1": (lc.nn.make("hetconv(part=4)", 20, 24, 3, padding=1), 20),
        "strided, beside a 1x1": (lc.nn.make("hetconv(part=2)", 12, 12, 3, stride=2, padding=1), 12),
    }


@torch.no_grad()
@pytest.mark.parametrize("size", [(2, 9, 11), (1, 1, 1), (1, 8, 33)], ids=str)
@pytest.mark.parametrize("name", layers())
def test_merged_groups_compute_the_same(name, size):
    torch.manual_seed(0)
    model, c = layers()[name]
    n, h, w = size
    graph = graph_of(model, torch.randn(n, c, h, w))
    node = next(node for node in graph if isinstance(node.op, Block))
    target = Target(ZEN4)
    run = merged(node, target)
    assert run is not None
    assert run.bound.form.groups < node.op.stages[0].groups
    inputs = [sample(x) for x in node.inputs]
    exact = plain_implementation(node.__class__(node.op, node.inputs, node.shape, torch.float64))
    assert_no_worse(run(*inputs), plain_implementation(node)(*inputs), exact(*[x.double() for x in inputs]))


def test_who_is_not_merged():
    x = torch.randn(1, 64, 5, 5)

    def node_of(model, x=x):
        return next(node for node in graph_of(model, x) if isinstance(node.op, Block))

    narrow = node_of(Groups(64, 64, 8))
    assert merged(narrow, Target(ZEN4)).bound.form.groups == 4
    assert merged(narrow, Target(HASWELL)) is None  # 8 channels fill a vector there
    assert merged(narrow, Target(ZEN4, arithmetic="direct")) is None
    assert merged(node_of(Groups(64, 64, 4)), Target(ZEN4)) is None
    assert merged(node_of(nn.Conv2d(64, 64, 3)), Target(ZEN4)) is None
    assert merged(node_of(nn.Conv2d(64, 64, 3, groups=64)), Target(ZEN4)) is None


@torch.no_grad()
@pytest.mark.parametrize("behind", [0, 20])
def test_groups_on_tiles_in_bfloat16(behind):
    """Alone they are one product; a 1×1 behind them is a second step."""
    torch.manual_seed(0)
    x = torch.randn(2, 24, 9, 14)
    graph = lower_precision(graph_of(Groups(24, 40, 4, behind=behind, padding=1), x), torch.bfloat16)
    node = next(node for node in graph if isinstance(node.op, Block))
    found = {make: make(node, Target(SAPPHIRE_RAPIDS)) for make in (tiles, split_on_tiles)}
    used, other = (split_on_tiles, tiles) if behind else (tiles, split_on_tiles)
    assert found[other] is None
    inputs = [sample(x) for x in node.inputs]
    exact = plain_implementation(node.__class__(node.op, node.inputs, node.shape, torch.float64))
    want = exact(*[x.double() for x in inputs])
    eager = plain_implementation(node)(*inputs)
    assert_no_worse(found[used](*inputs), eager, want, factor=3.0, dtype=torch.bfloat16)
    assert used(node, Target(ZEN4)) is None
    assert {"merged", "tiles", "tiles+tiles"} <= {each.name for each in IMPLEMENTATIONS[Block]}


@torch.no_grad()
@pytest.mark.parametrize("cpu", [ZEN4, SAPPHIRE_RAPIDS], ids=["vectors", "tiles"])
@pytest.mark.parametrize("conv", ["hetconv(part=4)", "group_pointwise", "spconv"])
def test_integers_give_the_same_bits(conv, cpu):
    torch.manual_seed(0)
    model, x = network(f"unet?base=8&levels=1&conv={conv}")
    quantizer = quantizer_of(model, x)
    graph, _ = quantizer.rewrite({*quantizer.nodes})
    values = in_torch(graph).values(x)
    places, count = in_torch(graph).places, 0
    for node in graph:
        if not isinstance(node.op, Integer) or not isinstance(node.op.form.form, Grouped):
            continue
        run = merged(node, Target(cpu))
        if node.op.form.form.groups == 1:
            assert run is None
            continue
        count += 1
        assert run is not None
        assert run.bound.form.form.groups == 1
        inputs = [values[places[each]] for each in node.inputs]
        found, same = (each(*inputs) for each in (run, kernel(node, Target(cpu))))
        y, other = (each[0] if node.op.average else each for each in (found, same))
        assert torch.equal(y, values[places[node]])
        assert torch.equal(y, other)
    assert count >= 3


@torch.no_grad()
def test_two_steps_on_tiles_are_named_so(monkeypatch):
    """The graph gets both nodes, and a stored program the name of each."""
    torch.manual_seed(0)
    chosen = [each for each in IMPLEMENTATIONS[Block] if each.name in ("aten", "tiles+tiles")]
    monkeypatch.setitem(IMPLEMENTATIONS, Block, chosen)
    monkeypatch.setattr(autotune, "_measure", lambda node, choices, *_: {"tiles+tiles": 1.0})
    model, x = Groups(24, 40, 4, behind=20, padding=1).eval(), torch.randn(2, 24, 9, 14)
    graph = lower_precision(graph_of(model, x), torch.bfloat16)
    runs, report = autotune.autotune(graph, seconds=1.0, target=Target(SAPPHIRE_RAPIDS))
    steps = [node for node in graph.nodes if isinstance(node.op, Block)]
    assert [report.names[node] for node in steps] == ["tiles", "tiles"]
    assert [type(runs[node]) for node in steps] == [KernelRun, KernelRun]
    (y,) = Program(graph, runs)(x)
    torch.testing.assert_close(y.float(), model(x), rtol=0.02, atol=0.02)


@torch.no_grad()
def test_a_stored_program_of_merged_groups_opens_on_other_processors(tmp_path, monkeypatch):
    """Where groups are not merged, or there are no tiles, their plain kernel runs."""
    torch.manual_seed(0)
    model, x = nn.Sequential(Groups(16, 16, 4, padding=1), Added()).eval(), torch.randn(2, 16, 9, 14)
    graph = graph_of(model, x)
    by = {Block: "merged", Add: "kernel"}
    names = {node: by.get(type(node.op), "aten") for node in graph.nodes if node.op.is_step}
    save_program(graph, names, dense=False, folder=tmp_path)
    for made in (merged, lambda node, target=None: None):
        monkeypatch.setitem(IMPLEMENTATIONS, Block, [KERNEL, Implementation("merged", made)])
        torch.testing.assert_close(open_program(tmp_path, x.shape)(x), model(x), rtol=1e-4, atol=1e-5)


def test_integers_that_have_no_room_are_not_merged():
    """Centre and 1×1 beside it may add up to more than 8 bits: then groups stay as they are."""
    torch.manual_seed(0)
    model, x = network("unet?base=8&levels=1&conv=hetconv(part=4)")
    quantizer = quantizer_of(model, x)
    graph, _ = quantizer.rewrite({*quantizer.nodes})
    node = next(n for n in graph if isinstance(n.op, Integer) and getattr(n.op.form.form, "pointwise", False))
    assert merged(node, Target(ZEN4)) is not None
    taps, beside = node.op.weights[:2]
    taps[:, :, 1, 1], beside[:] = 100, 100
    assert merged(node, Target(ZEN4)) is None
    assert backend().bind(node.op.form, node.op.weights) is not None
