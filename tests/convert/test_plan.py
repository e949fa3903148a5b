"""plan: what is listed, what is swapped, and that the model is exactly as it was."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.convert import plan, reasons
from leanconv.convert.select import all_of, any_of, excluding, glob, kernel, kind, min_channels, min_macs
from leanconv.cost import dense_cost
from leanconv.errors import BadInput, UnknownName
from leanconv.nn import Conv2d, get, make
from leanconv.spec import ConvSpec


class Small(nn.Module):
    """A stem and one layer of every kind."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2)
        self.line = nn.Conv1d(8, 8, 3, padding=1)
        self.unused = nn.Conv2d(8, 8, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.body(F.relu(self.norm(self.stem(x))))
        x = self.up(self.point(self.drop(self.grouped(self.depthwise(x)))))
        return x + self.line(x.mean(2))[:, :, None]


X = torch.randn(2, 3, 12, 10)


def why(found):
    return {swap.name: reasons.category(swap.reason) for swap in found}


def test_every_convolution_is_listed_once_in_the_order_it_runs():
    found = plan(Small(), X, to="splconv")
    assert why(found) == {
        "stem": "first convolution",
        "body": "",
        "depthwise": "depthwise",
        "grouped": "grouped",
        "point": "kernel 1x1",
        "up": "transposed convolution",
        "line": "not two-dimensional",
        "unused": "never called",
    }
    assert [s.name for s in found][:7] == ["stem", "body", "depthwise", "grouped", "point", "up", "line"]
    (body,) = found.swapped
    assert body.to == "splconv"
    assert body.spec == ConvSpec.of(8, 16, 3, 2, 1, bias=False, n=2, h=12, w=10)
    assert body.before.macs == 2 * 6 * 5 * 16 * 8 * 9
    assert body.after == get("splconv").cost(body.spec)
    assert found.before.macs - found.after.macs == body.before.macs - body.after.macs
    assert set(why(found).values()) - {""} <= set(reasons.MEANING)


def test_plan_prints_a_table_with_totals_and_reasons():
    text = str(plan(Small(), X, to="splconv"))
    assert "1 of 8 convolutions change" in text
    assert "never called: the model did not call it" in text
    lines = [str(swap) for swap in plan(Small(), X, to="splconv")]
    assert lines[0] == "keep stem: first convolution"
    assert lines[1].startswith("swap body: splconv, 69.12k -> ")
    assert str(plan(nn.ReLU(), X, to="splconv")) == "the model has no convolution"


def test_the_model_is_exactly_as_before():
    class Restless(Small):
        """Draws random numbers, counts in a buffer, writes a parameter and adds a buffer, in eval mode too."""

        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            self.count += 1
            self.scale.data.add_(1.0)
            self.register_buffer("cache", torch.ones(3))
            random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
            return super().forward(x)

        def train(self, mode=True):  # like a layer that merges its weights when it leaves training
            self.merged = not mode
            return super().train(mode)

    model = Restless()
    model.norm.eval()
    calls = []
    model.body.register_forward_hook(lambda *_: calls.append(1))
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    held = dict(model.named_parameters()) | dict(model.named_buffers())
    generators = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    plan(model, X, to="splconv")
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [m.training for m in model.modules()] == modes
    assert not hasattr(model, "merged") or not model.merged
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(held[name] is value for name, value in [*model.named_parameters(), *model.named_buffers()])
    assert random.getstate() == generators[0]
    assert np.array_equal(np.random.get_state()[1], generators[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), generators[2])
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_model_is_left_as_it_was_too():
    model = Small()
    with pytest.raises(BadInput, match=r"does not run on inputs \(2, 5, 12, 10\)"):
        plan(model, torch.randn(2, 5, 12, 10), to="splconv")
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_inputs_as_tuple_and_dict():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, image, scale=1.0, *, shift=0.0):
            return {"out": (self.b(input=self.a(image) * scale + shift),)}

    for inputs in ((X, torch.ones(())), [X], {"image": X, "shift": torch.ones(())}):
        assert [s.name for s in plan(Two(), inputs, to="hetconv").swapped] == ["b"]
    with pytest.raises(BadInput, match="a tensor, a tuple"):
        plan(Two(), "1,3,12,10", to="hetconv")
    with pytest.raises(BadInput, match="every key must be a string"):
        plan(Two(), {1: X}, to="hetconv")


def test_to_and_where_may_be_functions():
    def to(name, spec):
        return {"body": "hetconv(part=2)", "stem": "depthwise_separable", "point": "conv"}.get(name)

    # Without where= the operator's word and the first-convolution rule hold for a function too.
    assert {s.name: s.to for s in plan(Small(), X, to=to).swapped} == {"body": "hetconv(part=2)", "point": "conv"}
    everywhere = plan(Small(), X, to=to, where="*")
    assert {s.name: s.to for s in everywhere.swapped} == {
        "stem": "depthwise_separable",
        "body": "hetconv(part=2)",
        "point": "conv",
    }
    assert why(everywhere)["grouped"] == "not selected"
    only = plan(Small(), X, to="splconv", where=lambda name, spec: spec.c == 3)
    assert [s.name for s in only.swapped] == ["stem"]
    assert why(only)["body"] == "not selected"


def test_predicates():
    specs = {"a.conv": ConvSpec.of(64, 32, 3, padding=1, h=8, w=8), "b": ConvSpec.of(8, 8, 7, groups=8, h=8, w=8)}
    cases = {
        "glob": (glob("a.*", "z"), ["a.conv"]), "kind": (kind("dense"), ["a.conv"]),
        "depthwise": (kind("depthwise", "grouped"), ["b"]), "channels": (min_channels(32), ["a.conv"]),
        "kernel": (kernel(7), ["b"]), "macs": (min_macs(64 * 32 * 9 * 64), ["a.conv"]),
        "more": (min_macs(64 * 32 * 9 * 64 + 1), []), "all": (all_of(glob("*"), kernel(3)), ["a.conv"]),
        "any": (any_of(glob("b"), kernel(3)), ["a.conv", "b"]), "not": (excluding(glob("b")), ["a.conv"]),
    }  # fmt: skip
    for label, (where, expected) in cases.items():
        assert [name for name, spec in specs.items() if where(name, spec)] == expected, label
    with pytest.raises(BadInput, match="one of dense"):
        kind("sparse")


@pytest.mark.parametrize(
    ("to", "where", "error", "text"),
    [
        ("splcon", None, UnknownName, "did you mean 'splconv'"),
        ("splconv(alhpa=1)", None, UnknownName, "did you mean 'alpha'"),
        ("splconv(alpha=open('x'))", None, BadInput, "plain value"),
        ("splconv(alpha='a')", None, BadInput, "alpha"),
        (3, None, BadInput, "an operator string or a function"),
        ("splconv", 3, BadInput, "a glob"),
        ("splconv", "bdy", BadInput, "matches no convolution.*did you mean 'body'"),
        (lambda name, spec: "nothing", None, UnknownName, "unknown operator"),
    ],
)
def test_bad_arguments_say_so(to, where, error, text):
    with pytest.raises(error, match=text):
        plan(Small(), X, to=to, where=where)


def test_what_an_operator_cannot_do_is_listed_with_its_words():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 9, 3), nn.Conv2d(9, 8, 2), nn.Conv2d(8, 8, 3))
    found = plan(model, X, to="hetconv(part=4)")
    assert [s.name for s in found.swapped] == ["3"]
    assert found[1].reason.startswith("unsupported: hetconv: part=4 does not divide in_channels=6")
    assert "even" in found[2].reason
    assert found.reasons() == {"unsupported": 2, "first convolution": 1}


def test_parallel_first_convolutions_are_both_first():
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3)

        def forward(self, x):
            return self.c(self.b(x) + self.a(x))

    assert why(plan(Stem(), X, to="hetconv")) == {"b": "kernel 1x1", "a": "first convolution", "c": ""}


def test_shared_modules_are_one_line_and_cost_per_call():
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.MaxPool2d(2), nn.Sequential(conv))
    found = plan(model, X, to="hetconv")
    assert [s.name for s in found] == ["0", "1"]
    assert found[1].calls == 2
    full, half = ConvSpec.from_conv(conv, (2, 8, 12, 10)), ConvSpec.from_conv(conv, (2, 8, 6, 5))
    assert found[1].before.macs == dense_cost(full).macs + dense_cost(half).macs
    assert found[1].before.params == dense_cost(full).params
    assert [s.name for s in plan(model, X, to="hetconv", where="3.0").swapped] == ["1"]  # any of its names


class Quirky(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def _weight_norm(conv):
    return nn.utils.parametrizations.weight_norm(conv)


def _spectral_norm(conv):
    return nn.utils.spectral_norm(conv)


def _pruned(conv):
    from torch.nn.utils import prune

    return prune.l1_unstructured(conv, "weight", 0.5)


def _state_dict_hook(conv):
    conv.register_state_dict_post_hook(lambda *_: None)
    return conv


def _own_forward(conv):
    conv.forward = conv.forward
    return conv


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda conv: Quirky(8, 8, 3), "subclass of nn.Conv2d"), (_weight_norm, "parametrized weight"),
        (_spectral_norm, "parametrized weight"), (_pruned, "parametrized weight"),
        (_state_dict_hook, "hooks of its own"), (_own_forward, "hooks of its own"),
        (lambda conv: make("splconv", 8, 8, 3, padding=1), "already an operator"),
        (lambda conv: nn.LazyConv2d(8, 3), "lazy"), (lambda conv: torch.jit.script(conv), "scripted"),
        (lambda conv: Conv2d(8, 8, 3), ""), (lambda conv: conv, ""),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.filterwarnings("ignore:.*[lL]azy.*:UserWarning")
def test_layers_that_cannot_go(change, reason):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), change(nn.Conv2d(8, 8, 3)), nn.Conv2d(8, 8, 3))
    before = [(name, type(m)) for name, m in model.named_modules()]
    found = plan(model, X, to="hetconv")
    assert why(found) == {"0": "first convolution", "1": reason, "2": ""}
    assert [(name, type(m)) for name, m in model.named_modules()] == before


def test_tied_weights_stay():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[2].weight
    assert why(plan(model, X, to="hetconv")) == {"0": "kernel 1x1", "1": "tied weight", "2": "tied weight", "3": ""}


def test_convolutions_in_plain_containers_and_used_by_hand():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.by_hand = nn.Conv2d(8, 8, 3)
            self.hidden = [nn.Conv2d(8, 8, 3)]
            self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1)])
            self.order = {"first": [self.blocks[0]]}
            self.table = nn.ModuleDict({"a": nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)))})

        def forward(self, x):
            x = F.conv2d(self.stem(x), self.by_hand.weight)
            return self.table["a"](self.order["first"][0](self.hidden[0](x)))

    assert why(plan(Odd(), X, to="hetconv")) == {
        "stem": "first convolution",
        "by_hand": "never called",
        "hidden[0]": "outside the module tree",
        "blocks.0": "outside the module tree",
        "table.a.0.0": "kernel 1x1",
        "table.a.0.1": "",
    }


def test_a_convolution_alone_cannot_be_swapped_inside_itself():
    assert why(plan(nn.Conv2d(3, 8, 3), X, to="splconv", where="*")) == {"": "the model itself"}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_wrapped_models():
    inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert [s.name for s in plan(nn.DataParallel(inner), X, to="hetconv").swapped] == ["module.1"]
    compiled = torch.compile(inner, backend="eager")
    assert [s.name for s in plan(compiled, X, to="hetconv").swapped] == ["_orig_mod.1"]
    scripted = nn.Sequential(nn.Conv2d(3, 3, 3), torch.jit.script(inner))
    assert why(plan(scripted, X, to="hetconv")) == {"0": "first convolution", "1.0": "scripted", "1.1": "scripted"}
    assert why(plan(torch.fx.symbolic_trace(inner), X, to="hetconv")) == {"0": "first convolution", "1": ""}


def test_other_devices_dtypes_and_sizes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"))
    assert plan(model.bfloat16(), X.bfloat16(), to="hetconv").swapped[0].spec.padding_mode == "reflect"
    empty = plan(model, X[:0].bfloat16(), to="hetconv")
    assert empty.swapped[0].before.macs == 0
    single = plan(model.float(), X[0], to="hetconv")
    assert "no batch dimension" in single[1].reason
    with torch.device("meta"):
        meta = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert plan(meta, X.to("meta"), to="hetconv").swapped[0].name == "1"


def test_operators_are_leaves_and_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), make("depthwise_separable", 8, 8, 3, padding=1), nn.Conv2d(8, 8, 3))
    found = plan(model, X, to="splconv")
    assert [s.name for s in found] == ["0", "1", "2"]
    assert found[1].before.macs == 2 * 120 * (8 * 9 + 8 * 8)
    assert found[1].before.params == sum(p.numel() for p in model[1].parameters())


def test_an_operator_that_counts_layers_is_numbered_as_they_run(monkeypatch):
    """XSepConv's padding direction depends on the layer's place in the network."""
    from leanconv import registry
    from leanconv.nn import DepthwiseSeparableConv2d

    class Numbered(DepthwiseSeparableConv2d):
        def __init__(self, *arguments, layer_index=0, **rest):
            super().__init__(*arguments, **rest)
            self.layer_index = layer_index

        @classmethod
        def why_not(cls, spec, *, layer_index=0):
            return super().why_not(spec)

        @classmethod
        def cost(cls, spec, *, layer_index=0):
            return super().cost(spec)

    monkeypatch.setitem(registry._OPERATORS, "numbered", Numbered)

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
            self.even, self.a = nn.Conv2d(8, 8, 1), nn.Conv2d(3, 8, 1)

        def forward(self, x):
            return self.c(self.b(self.even(self.a(x))))

    found = plan(Backwards(), X, to="numbered")
    assert [(s.name, s.to) for s in found.swapped] == [
        ("b", "numbered(layer_index=0)"),
        ("c", "numbered(layer_index=1)"),
    ]
    given = plan(Backwards(), X, to="numbered(layer_index=7)")
    assert {s.to for s in given.swapped} == {"numbered(layer_index=7)"}


def test_a_layer_that_is_compiled_by_itself_stays():
    """What torch.compile returned keeps calling the very layer that it was given."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), torch.compile(nn.Conv2d(8, 8, 3), backend="eager"))
    [_, part] = plan(model, X, to="hetconv")
    assert (part.name, part.to, part.reason) == ("1._orig_mod", None, "outside the module tree")


def test_sizes_outside_the_papers_rule_stay_unless_they_are_named():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 8, 5, 2, 2, groups=8),
        nn.Conv2d(8, 8, 7, 2, 3, groups=8),
        nn.Conv2d(8, 8, 5, padding=2, groups=8),
    )
    x = torch.randn(1, 3, 16, 16)
    found = plan(model, x, to="xsepconv")
    rule = "outside the paper's rule"
    assert why(found) == {"0": "dense", "1": rule, "2": rule, "3": "", "4": ""}
    assert [swap.to for swap in found.swapped] == ["xsepconv(layer_index=0)", "xsepconv(layer_index=1)"]
    assert "k >= 7" in found[2].reason
    assert [swap.name for swap in plan(model, x, to="xsepconv", where="[12]").swapped] == ["1", "2"]
    assert rule in str(found)


def test_what_stands_under_stays_because_is_a_reason():
    """A layer that is called twice and swapped had its calls there, as if it stayed because of them."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.last = (
                nn.Conv2d(3, 8, 3, padding=1),
                nn.Conv2d(8, 8, 3, padding=1),
                nn.Conv2d(8, 8, 1),
            )

        def forward(self, x):
            return self.last(self.last(self.body(self.body(self.stem(x)))))

    found = plan(Twice(), torch.randn(1, 3, 16, 16), to="splconv")
    lines = {line.split()[0]: line for line in str(found).splitlines() if line.strip()}
    assert [swap.calls for swap in found] == [1, 2, 2]
    column = lines["layer"].index("stays because")
    assert lines["body"][column:].strip() == ""
    assert lines["last"][column:].strip() == "kernel 1x1"
    assert lines["stem"][column:].strip() == "first convolution"
    for name, calls in (("stem", ""), ("body", "2 calls"), ("last", "2 calls")):
        assert calls in lines[name][:column]
        assert ("calls" in lines[name]) == bool(calls)
