"""Values laid out in one memory: none is overwritten while it is needed, none handed out that is written again."""

import itertools
import math
import weakref
from importlib import import_module

import pytest
import torch
from torch import nn

from leanconv.engine import optimize
from leanconv.engine.fused.capture.export import to_graph
from leanconv.engine.fused.execution.memory_plan import KernelStep, Step, _bases, _ends, _gap
from leanconv.engine.fused.execution.program import Program
from leanconv.engine.fused.execution.session import Plan, Session
from leanconv.engine.fused.ir.kinds.block import Block
from leanconv.engine.fused.lowering import autotune as room
from leanconv.engine.fused.lowering.autotune import autotune
from leanconv.engine.fused.passes.fusion import fuse
from leanconv.engine.workbench import Workbench
from leanconv.errors import BadInput
from leanconv.kernels import Target, backend
from leanconv.nn.hetconv import HetConv2d
from leanconv.nn.splconv import SPLConv2d
from leanconv.ops.gated_sum import gated_sum

kernels = pytest.mark.skipif(bool(backend().why_not()), reason=backend().why_not() or "kernels")


class Branches(nn.Module):
    """A value read late, twice and as a slice; outputs that are kernels' results, views of them, and PyTorch's."""

    def __init__(self, c=24):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, c, 3, padding=1), nn.Conv2d(c, c, 3, 2, 1)
        self.wide, self.last = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, c, 1)
        self.dw = nn.Conv2d(c // 2, c // 2, 3, padding=1, groups=c // 2)
        self.up, self.half = nn.ConvTranspose2d(c, 5, 2, 2), c // 2

    def forward(self, x):
        early = self.stem(x).relu()
        y = self.last(self.wide(early).relu()) + early
        a, b = y.split(self.half, 1)
        z = self.last(torch.cat([self.dw(a), b, early], 1))
        d = self.down(z).tanh()  # no kernel's activation
        return z, d, y[:, 3:7], self.up(d), early.mean((2, 3)), self.last(self.wide(d))


def program_of(model, x, seconds=0.0):
    graph = fuse(to_graph(Workbench(model.eval(), (x,), {}, 1).program))
    runs, blocks = autotune(graph, seconds=seconds)  # no time to measure: kernels wherever there are some
    return Program(graph, runs), blocks


@kernels
@torch.no_grad()
def test_calls_do_not_disturb_each_other():
    torch.manual_seed(0)
    model = Branches().eval()
    shapes = [(1, 3, 20, 14), (2, 3, 9, 11)]
    program, _ = program_of(model, torch.randn(shapes[0]))
    seen = []
    for _, shape in itertools.product(range(4), shapes):
        x = torch.randn(shape)
        seen.append((program(x), model(x)))
    plans = list(program._plans.values())
    assert len(plans) == 2
    assert sum(isinstance(todo, KernelStep) for todo in plans[0].todo) >= 8
    needed = sum(4 * math.prod(slot.shape) for slot in plans[0].slots.values())
    assert plans[0].size < needed, "values that are never needed together share their memory"
    for found, want in seen:
        for y, exact in zip(found, want, strict=True):
            torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)


@kernels
@torch.no_grad()
def test_memory_that_was_never_written_is_never_read(monkeypatch):
    def nothing(*size, dtype=None, **rest):  # bytes that are no number in any type
        fill = 0xFF if dtype == torch.uint8 else torch.nan
        return torch.full(size[0] if not isinstance(size[0], int) else size, fill, dtype=dtype, **rest)

    monkeypatch.setattr(torch, "empty", nothing)
    model, x = Branches().eval(), torch.randn(1, 3, 20, 14)
    program, _ = program_of(model, x)
    for _ in range(3):
        for y, want in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_first_call_frees_what_nobody_needs_any_more():
    model, x = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(12)]), torch.randn(1, 3, 9, 9)
    program, _ = program_of(model, x)
    alive, most = weakref.WeakSet(), []

    def watched(run):
        def call(*inputs):
            y = run(*inputs)
            alive.add(y)
            most.append(len(alive))
            return y

        return call

    program.steps = [step._replace(run=watched(step.run)) for step in program.steps]
    program(x)
    assert len(most) == 12
    assert max(most) == 2


@torch.no_grad()
def test_shapes_that_come_again_take_the_place_of_those_that_do_not(monkeypatch):
    monkeypatch.setattr(import_module("leanconv.engine.fused.execution.program"), "_MOST_PLANS", 3)
    model = nn.Conv2d(3, 2, 3)
    program, _ = program_of(model, torch.randn(1, 3, 9, 9))
    for size in (4, 5, 6, 5, 6, 6, *[7] * 20, *range(10, 40), 8):
        x = torch.randn(1, 3, size, 4)
        torch.testing.assert_close(program(x)[0], model(x), rtol=1e-4, atol=1e-5)
    assert sorted(key[1][0][2] for key in program._plans) == [5, 6, 7]  # 4 was called least; 8 and others too seldom


@kernels
def test_memory_made_in_inference_mode_is_written_outside_it():
    """The place of an average that PyTorch makes: it is filled anew in every call."""
    with torch.inference_mode():
        session = Session(Plan([], [torch.empty(2, 5, 1, 1)], [0], {}))
        kept = session._copied(0)
    (step,) = session._entries
    step.run(torch.ones(2, 5, 1, 1))
    assert torch.equal(kept, torch.ones(2, 5, 1, 1))


@kernels
def test_threads_are_part_of_a_plan():
    model, x = Branches().eval(), torch.randn(1, 3, 20, 14)
    program, _ = program_of(model, x)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            for count in (1, 2, 1, 2):
                torch.set_num_threads(count)
                torch.testing.assert_close(program(x)[0], model(x)[0], rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    assert len(program._plans) == 2


def test_where_values_lie():
    steps = [
        Step(None, (0,), 1, -1, (), False), Step(None, (1,), 2, -1, (), True), Step(None, (1,), 3, 4, (), False),
        Step(None, (2, 4), 5, -1, (), False),
    ]  # fmt: skip
    assert _ends(steps, 6, []) == [0, 3, 3, 2, 3, 3]  # 1 lives as long as its view, 2
    assert _ends(steps, 6, [2]) == [0, 4, 4, 2, 3, 3]
    assert _gap([(0, 10, 0), (16, 32, 0)], 6) == 10
    assert _gap([(0, 10, 0), (16, 32, 0)], 7) == 32
    assert _gap([], 7) == 0
    assert _bases([*steps, Step(None, (2, 3), 6, -1, (), True)]) == {2: {1}, 6: {1, 3}}


class Twice(nn.Module):
    """SPLConvs whose first pass is needed once, or once more: by what follows, or by the same sum as a slice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(SPLConv2d(16, 16, 3, padding=1) for _ in range(3))
        self.plain = nn.Conv2d(8, 16, 1)

    def branches(self, layer, x):
        large, rest = x.split(layer.split, 1)
        return layer.act(layer.norm(layer.pointwise(layer.stencil2(layer.stencil1(large))))), rest

    def forward(self, x):
        x = self.layers[0](x)
        a, rest = self.branches(self.layers[1], x)
        x = gated_sum(a, self.plain(rest)) + a
        a, _ = self.branches(self.layers[2], x)
        return gated_sum(a, self.plain(a[:, :8])).relu() * 2


@kernels
@torch.no_grad()
def test_a_gated_sum_lies_where_its_first_map_did_where_nothing_else_needs_that():
    torch.manual_seed(0)
    model, x = Twice().eval(), torch.randn(1, 16, 84, 130)  # a multiple of most tiles
    program, _ = program_of(model, x)
    found = [program(x) for _ in range(3)][-1]
    torch.testing.assert_close(found[0], model.double()(x.double()).float(), rtol=1e-4, atol=1e-4)
    (plan,) = program._plans.values()
    gated = [todo for todo in plan.todo if isinstance(todo, KernelStep) and todo.averages]
    shared = [todo.at in plan.slots and plan.slots[todo.at] == plan.slots.get(todo.maps[0]) for todo in gated]
    assert shared == [True, False, False]


def test_the_choice(monkeypatch):
    """The faster of two forms is taken, a wrong or failing one never; what was measured once is known."""
    from leanconv.engine.fused.lowering.implementations import IMPLEMENTATIONS, Implementation

    def slow(node):
        run = aten.make(node)
        return lambda x: torch.stack([run(x) for _ in range(30)])[0]

    def lucky(node):
        run = aten.make(node)
        return lambda x: run(x) * 1.01

    aten = next(form for form in IMPLEMENTATIONS[Block] if form.name == "aten")
    forms = {
        **IMPLEMENTATIONS,
        Block: [
            Implementation("slow", slow),
            aten,
            Implementation("wrong", lucky),
            Implementation("fails", lambda node: 1 / 0),
        ],
    }
    model, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        torch.randn(1, 3, 33, 33),
    )
    graph = fuse(to_graph(Workbench(model.eval(), (x,), {}, 1).program))
    monkeypatch.setattr(room, "_MEASURED", {})
    _, blocks = autotune(graph, seconds=60, forms=forms)
    assert [row.chosen for row in blocks.rows] == ["aten"] * 3
    assert blocks.rows[0].refused["wrong"] == "differs from PyTorch's"
    assert "ZeroDivisionError" in blocks.rows[0].refused["fails"]
    assert blocks.rows[0].times_ms["slow"] > 5 * blocks.rows[0].times_ms["aten"]
    assert len(room._MEASURED) == 3
    monkeypatch.setattr(room, "_measure", None)
    autotune(graph, seconds=60, forms=forms)


def test_without_kernels_the_graph_still_runs(monkeypatch):
    monkeypatch.setattr("leanconv.kernels.cpu.availability.why_not", lambda: "halide is not installed")
    model, x = Branches().eval(), torch.randn(1, 3, 20, 14)
    program, blocks = program_of(model, x, seconds=60)
    assert not {"kernel", "split"} & {row.chosen for row in blocks.rows}
    with torch.no_grad():
        for _ in range(2):
            for y, want in zip(program(x), model(x), strict=True):
                torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


class Image(nn.Module):
    """An image read by one convolution, by two, or for something else too."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.second = how, nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x):
        y = self.first(x)
        return {"once": y, "twice": (y, self.second(x)), "residual": y + x, "handed out": (y, x)}[self.how]


@kernels
@torch.no_grad()
@pytest.mark.parametrize(("how", "in_planes"), [("once", 1), ("twice", 1), ("residual", 0), ("handed out", 0)])
def test_an_image_is_read_where_it_lies(how, in_planes):
    torch.manual_seed(0)
    model = Image(how)
    program, _ = program_of(model, torch.randn(2, 3, 9, 8))
    for _ in range(2):
        for x in (
            torch.randn(2, 3, 9, 8),
            torch.randn(2, 3, 9, 10)[..., 1:9],
            torch.randn(2, 9, 8, 3).permute(0, 3, 1, 2),
        ):
            want = model(x)
            for y, exact in zip(program(x), [want] if isinstance(want, torch.Tensor) else want, strict=True):
                torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
    read = {
        plan.strides[place]
        for plan in program._plans.values()
        for todo in plan.todo
        if isinstance(todo, KernelStep) and todo.bound
        for place in todo.maps
    }
    assert ((216, 72, 8, 1) in read) == bool(in_planes)
    assert (216, 1, 24, 3) in read


@kernels
@torch.no_grad()
@pytest.mark.parametrize("planes", [[True, True], [True, False], []])
def test_maps_in_planes_come_and_go_within_the_plan(planes):
    """Inputs and answers in planes, one handed out as it came, one a single pixel; other layouts; a batch of none."""

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(20, 24, 3, padding=1), nn.Conv2d(24, 17, 1)

        def forward(self, x):
            y = self.first(x).relu()
            return y, self.second(y)

    torch.manual_seed(0)
    model = Pair()
    graph = fuse(to_graph(Workbench(model.eval(), (torch.randn(1, 20, 12, 14),), {}, 1).program))
    program = Program(graph, autotune(graph, seconds=0.0)[0], planes)
    for size in (12, 14), (1, 1), (9, 5), (40, 42):
        for x in (
            torch.randn(2, 20, *size),
            torch.randn(2, *size, 20).permute(0, 3, 1, 2),
            torch.randn(2, 20, size[0], size[1] + 2)[..., 1:-1],
            torch.randn(0, 20, *size),
        ):
            for _ in range(3):
                kept, want = x.clone(), model(x)
                found = program(x)
                for y, exact, dense in zip(found, want, [*planes, False, False], strict=False):
                    torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
                    assert y.is_contiguous() or not dense or size == (1, 1)
                    y.fill_(1e6)
                assert torch.equal(x, kept)
    copies = [todo for plan in program._plans.values() for todo in plan.todo if isinstance(todo, KernelStep)]
    assert sum(todo.bound is None for todo in copies) >= 3 + 3 * sum(planes)


class Shuffled(nn.Module):
    """Shuffles that move nothing are views: what they read is needed until they were read."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x):
        n, _, h, w = x.shape
        y = self.convs[0](x).relu().reshape(n, self.a, self.b, h, w).transpose(1, 2).reshape(n, 8, h, w)
        return torch.cat([self.convs[3](self.convs[2](self.convs[1](x))), y], 1)


@kernels
@torch.no_grad()
@pytest.mark.parametrize("groups", [(1, 8), (8, 1), (2, 4)])
def test_a_shuffle_may_be_a_view(groups):
    torch.manual_seed(0)
    model = Shuffled(*groups)
    program, _ = program_of(model, torch.randn(2, 8, 12, 10))
    for _ in range(3):
        x = torch.randn(2, 8, 12, 10)
        torch.testing.assert_close(program(x)[0], model(x), rtol=1e-4, atol=1e-5)


class Views(nn.Module):
    """Answers that are views of maps which nothing else needs, while kernels go on."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))

    def forward(self, x):
        first, *others = self.convs
        seen, y = first(x).permute(0, 2, 3, 1), x
        answers = seen.flatten(1), seen[:, 1:]
        for conv in others:
            y = conv(y).relu()
        return *answers, y


@kernels
@torch.no_grad()
def test_what_an_answer_is_a_view_of_is_not_written_again():
    torch.manual_seed(0)
    model, x = Views(), torch.randn(2, 8, 12, 10)
    program, _ = program_of(model, x)
    for _ in range(3):
        for y, want in zip(program(x), model(x), strict=True):
            torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)


class HandsOut(nn.Module):
    """Answers that share memory with what the next call needs, with the input, with each other."""

    def __init__(self):
        super().__init__()
        self.conv, self.held = nn.Conv2d(3, 4, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        y = self.conv(x)
        return y, y.clone(), x[:, :1].clone(), self.held, torch.linspace(0, 1, 5) * self.held[0]


@torch.no_grad()
def test_answers_are_the_callers_to_change():
    model = HandsOut().eval()
    program, _ = program_of(model, torch.randn(1, 3, 6, 6))
    for _ in range(3):
        x = torch.randn(1, 3, 6, 6)
        kept, want = x.clone(), [y.clone() for y in model(x)]
        for y, exact in zip(program(x), want, strict=True):
            torch.testing.assert_close(y, exact, rtol=1e-4, atol=1e-5)
            y.fill_(1e6)
        assert torch.equal(x, kept)


@kernels
@torch.no_grad()
def test_a_gate_of_another_type_is_not_read_as_it_lies():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.squeeze, self.project = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 8, 1)

        def forward(self, x):
            y = self.stem(x)
            return self.project(y * self.squeeze(y.mean((2, 3), keepdim=True)).sigmoid())

    program, _ = program_of(Gated(), torch.randn(1, 3, 6, 6))
    run = next(step.run for step in program.steps if getattr(step.run, "gate", False))
    last = {"memory_format": torch.channels_last}
    y, gate = torch.randn(1, 16, 6, 6).to(**last), torch.randn(1, 16, 1, 1)
    want = run(y, gate)
    assert run.prepare([y, None, gate]) is not None
    for kind in (torch.float64, torch.bfloat16):
        assert run.prepare([y, None, gate.to(kind)]) is None
        torch.testing.assert_close(run(y, gate.to(kind)), run(y, gate.to(kind).float()))
    torch.testing.assert_close(run(y, gate.double()), want)


@kernels
@torch.no_grad()
def test_the_arithmetic_is_a_value_of_the_target():
    model, x = HetConv2d(64, 64, 3, padding=1, part=4), torch.randn(1, 64, 24, 24)
    methods = {}
    for arithmetic in ("lean", "direct"):
        graph = fuse(to_graph(Workbench(model.eval(), (x,), {}, 1).program))
        runs, _ = autotune(graph, seconds=0.0, target=Target(arithmetic=arithmetic))
        Program(graph, runs)(x)
        methods[arithmetic] = {method for run in runs.values() if hasattr(run, "bound") for method in run.bound.methods}
    assert methods == {"lean": {"winograd"}, "direct": {"direct"}}


def test_an_unknown_arithmetic_is_refused(monkeypatch):
    with pytest.raises(BadInput, match="arithmetic is 'fast'; it may be lean, direct, fewest"):
        optimize(nn.Conv2d(3, 4, 1).eval(), torch.randn(1, 3, 4, 4), arithmetic="fast")
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "direct")
    assert Target().arithmetic == "direct"
    assert Target(arithmetic="fewest").arithmetic == "fewest"
    monkeypatch.setenv("LEANCONV_ARITHMETIC", "fast")
    with pytest.raises(BadInput, match="LEANCONV_ARITHMETIC is 'fast'; it may be lean, direct, fewest"):
        Target()
