"""A part that cannot be fused costs itself alone: the engine runs the rest, is right, and lists what it left out."""

import pytest
import torch
from torch import nn

from leanconv.engine import optimize
from leanconv.engine.fused.candidate import FUSED
from leanconv.engine.fused.capture.aten import READERS, aten
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution import program as programs
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.ir.kinds.elementwise import Activation
from leanconv.engine.fused.ir.kinds.gated_sum import GatedSum
from leanconv.engine.fused.lowering.autotune import autotune
from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, Implementation
from leanconv.engine.fused.passes import fusion as rewriting
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.workbench import Workbench
from leanconv.nn import make

X = torch.randn(2, 3, 13, 11)
NEIGHBOUR = "[4->8 dw3x3 dw3x3 d2 1x1+relu]"  # in every network here: SPLConv's main branch


def around(*parts, c=8):
    """A network that can be fused on both sides of the parts."""
    return (
        nn.Sequential(
            nn.Conv2d(3, c, 3, padding=1),
            nn.BatchNorm2d(c),
            nn.ReLU(),
            *parts,
            nn.BatchNorm2d(c),
            nn.ReLU(),
            make("splconv", c, c, 3, padding=1),
        )
        .eval()
        .requires_grad_(False)
    )


def prepared(model, x=X, dtype=None):
    bench = Workbench(model, (x,), {}, 1)
    bench.measuring_s = 0.0
    form = FUSED.prepare(bench, dtype)
    seen, _ = bench.verify(form, dtype)
    assert seen.passes, f"{seen} of {seen.allowed}\n{form.blocks}"
    return form


@pytest.fixture
def torch_alone(monkeypatch):
    """PyTorch and oneDNN alone: no kernel is compiled."""
    for kind in (Block, GatedSum):
        monkeypatch.setitem(
            IMPLEMENTATIONS, kind, [each for each in IMPLEMENTATIONS[kind] if each.name in ("aten", "onednn")]
        )


@pytest.fixture(scope="module")
def bench():
    return Workbench(around(), (X,), {}, 1)


@torch.no_grad()
def assert_right(graph, model, x=X):
    program = Program(graph, autotune(graph, seconds=0)[0])
    assert torch.allclose(program(x)[0], model(x), atol=1e-5)


class Beside(nn.Module):
    """Two stencils side by side, each with its own padding mode."""

    def __init__(self, mode):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode=mode)
        self.b = nn.Conv2d(4, 4, 5, padding=2, groups=4)

    def forward(self, x):
        return torch.cat([self.a(x[:, :4]), self.b(x[:, 4:])], 1)


OWN_WAY = {
    "reflect": lambda: make("fuseconv", 8, 8, 3, padding=1, padding_mode="reflect"),
    "replicate, strided": lambda: make("fuseconv", 8, 8, 3, 2, 1, padding_mode="replicate"),
    "circular, dilated": lambda: make("fuseconv", 8, 8, 3, 1, 2, 2, padding_mode="circular"),
    "all channels twice": lambda: make("fuseconv(variant='full')", 8, 8, 3, padding=1, padding_mode="circular"),
    "one of two": lambda: Beside("reflect"),
}


@pytest.mark.parametrize("part", OWN_WAY.values(), ids=OWN_WAY)
def test_branches_that_pad_in_their_own_way(part, torch_alone):
    form = prepared(around(part()))
    assert NEIGHBOUR in str(form.blocks)  # still fused
    assert "its branches read maps of different sizes" in str(form.blocks)
    assert "not fused: pad x" in str(form.blocks)


def test_optimize_shows_what_was_left_out(always, torch_alone):
    fast = optimize(around(make("fuseconv", 8, 8, 3, padding=1, padding_mode="reflect")), X, engines=["fused"])
    assert fast.engine == "fused"
    assert "its branches read maps of different sizes" in str(fast.choices)
    left = [row for row in fast.choices.to_dict()["blocks"] if "fused" in row["refused"]]
    assert [row["chosen"] for row in left] == ["aten"] * len(left) != []


def raises(graph, node, users):
    if isinstance(node.op, Block):
        raise ZeroDivisionError("a rule of ours")
    return False


def contradicts(graph, node, users):
    """Reads one map twice."""
    if not isinstance(node.op, Block) or node.op.concat > 1:
        return False
    node.inputs = [node.inputs[0], *node.inputs]
    node.op = Block(node.op.stages, concat=2)
    return True


@pytest.mark.parametrize(("rule", "why"), [(raises, "ZeroDivisionError: a rule of ours"), (contradicts, "reads")])
@pytest.mark.parametrize("rules", ["CANONICAL", "INTO_BLOCKS", "CHAINS", "LEFT_OVER", "CONCATS"])
def test_a_rule_that_fails_is_left_out_where_it_does(rule, why, rules, bench, torch_alone, monkeypatch):
    monkeypatch.setattr(rewriting, rules, (rule, *getattr(rewriting, rules)))
    graph = fuse(to_graph(bench.program))
    assert any(rule.__name__ in text and why in text for text in graph.left_out.values()), graph.left_out
    assert NEIGHBOUR in str(graph)
    assert_right(graph, bench.model)


def test_a_rule_that_fails_halfway_changes_nothing(bench, monkeypatch):
    def half(graph, node, users):
        if isinstance(node.op, Activation):
            node.op, node.inputs = None, []
            graph.nodes.clear()
            raise ValueError

    want = str(fuse(to_graph(bench.program)))
    monkeypatch.setattr(rewriting, "CANONICAL", (half, *rewriting.CANONICAL))
    assert str(fuse(to_graph(bench.program))) == want


def test_an_operator_that_cannot_be_read_stays_a_call(bench, torch_alone, monkeypatch):
    def unreadable(capture, node, args):
        capture.add(Activation("relu"), [args[0]], node)
        raise KeyError("no such thing")

    monkeypatch.setitem(READERS, aten.relu.default, unreadable)
    graph = fuse(to_graph(bench.program))
    assert "no such thing" in graph.left_out["relu"]
    assert_right(graph, bench.model)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_block_that_no_form_runs_stays_calls(dtype, torch_alone, monkeypatch):
    def but_grouped(form):
        def make(node):
            if node.op.stages[0].groups == 2:
                raise RuntimeError("not this one")
            return form.make(node)

        return Implementation(form.name, make)

    monkeypatch.setitem(IMPLEMENTATIONS, Block, [but_grouped(form) for form in IMPLEMENTATIONS[Block]])
    form = prepared(around(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU()), dtype=dtype)
    assert "not this one" in str(form.blocks)
    assert NEIGHBOUR in str(form.blocks)


@torch.no_grad()
def test_a_step_that_fails_at_the_first_call_is_pytorchs(bench, torch_alone):
    def fails(*inputs):
        raise RuntimeError("other strides than it was tried on")

    graph = fuse(to_graph(bench.program))
    block = next(node for node in graph.nodes if isinstance(node.op, Block) and len(node.op.stages) > 1)
    program = Program(graph, autotune(graph, seconds=0)[0] | {block: fails})
    for call in (program.settle, program, program):
        assert torch.allclose(call(X)[0], bench.model(X), atol=1e-5)
    assert program.left_out == {repr(block): "RuntimeError: other strides than it was tried on"}


@torch.no_grad()
@pytest.mark.parametrize("when", ["made", "run"])
def test_without_a_plan_of_the_memory_it_runs_step_by_step(when, bench, torch_alone, monkeypatch):
    class Fails(programs.Plan):
        def __init__(self, *rest):
            if when == "made":
                raise MemoryError("no room")
            super().__init__(*rest)

        def __call__(self, given):
            raise MemoryError("no room")

    graph = fuse(to_graph(bench.program))
    program = Program(graph, autotune(graph, seconds=0)[0])
    monkeypatch.setattr(programs, "Plan", Fails)
    for _ in range(3):
        assert torch.allclose(program(X)[0], bench.model(X), atol=1e-5)
    assert program.left_out == {"its plan of the memory": "MemoryError: no room"}
    with pytest.raises(RuntimeError):  # a caller's mistake is still an error
        program(torch.randn(1, 4, 13, 11))


class Strided(nn.Module):
    def forward(self, x):
        return x.as_strided((x.shape[0], 4, *x.shape[2:]), (x.stride(0), 2 * x.stride(1), *x.stride()[2:])).repeat(
            1, 2, 1, 1
        )


def test_memory_that_is_read_by_strides(torch_alone):
    prepared(around(Strided()))
