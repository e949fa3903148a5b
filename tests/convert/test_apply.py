"""apply_: all or nothing, everything the old layer had, and back again."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.convert import Plan, Swap, apply_, plan
from leanconv.errors import BadInput, UnsupportedConv
from leanconv.nn import DepthwiseSeparableConv2d, HetConv2d, SPLConv2d

X = torch.randn(2, 3, 12, 10)


def network(**options):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, **options),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
    )


def snapshot(model):
    return [(name, id(m), m.training) for name, m in model.named_modules()], copy.deepcopy(model.state_dict())


def assert_as(model, before):
    modules, state = snapshot(model)
    assert modules == before[0]
    assert list(state) == list(before[1])
    assert all(torch.equal(state[key], before[1][key]) for key in state)


def test_swaps_in_place_and_the_model_runs():
    model = network()
    applied = apply_(model, plan(model, X, to="splconv"))
    assert [type(m).__name__ for m in model][3::3] == ["SPLConv2d", "SPLConv2d"]
    assert model(X).shape == (2, 12, 6, 5)
    assert {layer.how for layer in applied.layers} == {"projected"}
    assert "2 layers swapped, 2 projected" in str(applied)
    assert applied.to_dict()["layers"][0] == {
        "name": "3",
        "to": "splconv",
        "how": "projected",
        "error": None,
        "error_before": None,
        "seconds": None,
    }


def test_projection_with_one_part_is_the_dense_layer():
    """HetConv with P = 1 is the standard convolution, so the projected model must compute what the old one did."""
    model = network().double().eval()
    expected = model(X.double())
    applied = apply_(model, plan(model, X.double(), to="hetconv(part=1)"), data=X.double())
    assert [layer.how for layer in applied.layers] == ["projected", "projected"]
    assert max(layer.error for layer in applied.layers) < 1e-14
    assert torch.allclose(model(X.double()), expected, rtol=1e-12, atol=1e-12)


def test_the_output_error_is_measured_at_the_layer():
    model = network().eval()
    expected, state = [], torch.get_rng_state()
    with torch.no_grad():
        for index in (3, 6):
            x = model[:index](X)
            old = model[index](x)
            new = HetConv2d.from_conv(model[index], part=4)
            assert new.project_(model[index])
            expected.append(float((new(x) - old).norm() / old.norm()))
    torch.set_rng_state(state)
    model.train()
    before = snapshot(model)
    applied = apply_(model, plan(model, X, to="hetconv(part=4)"), data=X)
    assert [layer.error for layer in applied.layers] == pytest.approx(expected, rel=1e-5)
    assert min(expected) > 0.1
    assert all(module.training for module in model.modules())
    applied.undo_()
    assert_as(model, before)


def test_fresh_is_fresh_and_seeded():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        model = network()
        applied = apply_(model, plan(model, X, to="hetconv"), init="fresh")
        assert {layer.how for layer in applied.layers} == {"fresh"}
        weights.append(model[3].spatial)
    assert torch.equal(*weights)
    with pytest.raises(BadInput, match="init='zero': one of 'project', 'fresh', 'fit'"):
        apply_(model, Plan([]), init="zero")


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (Swap("7", "hetconv", None, None, ""), BadInput, "has no such convolution"),
        (Swap("1", "hetconv", None, None, ""), BadInput, "has no such convolution"),
        (Swap("6", "hetconv(part=5)", None, None, ""), UnsupportedConv, "part=5"),
        (Swap("6", "hetconv(part='x')", None, None, ""), BadInput, "part='x'"),
        (Swap("6", "splconv(alpha='x')", None, None, ""), BadInput, "alpha"),
    ],
)
def test_all_or_nothing(bad, error, text):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before, groups = snapshot(model), list(optimizer.param_groups[0]["params"])
    with pytest.raises(error, match=text):
        apply_(model, [Swap("3", "hetconv", None, None, ""), bad], optimizer=optimizer)
    assert_as(model, before)
    assert all(a is b for a, b in zip(groups, optimizer.param_groups[0]["params"], strict=True))


def test_a_plan_of_another_model():
    steps = plan(network(), X, to="hetconv")
    for other in (network(dilation=2), network(bias=False), nn.Sequential(nn.Conv2d(3, 8, 3))):
        before = snapshot(other)
        with pytest.raises(BadInput, match="saved from another model"):
            apply_(other, steps)
        assert_as(other, before)
    swapped = network()
    apply_(swapped, steps)
    with pytest.raises(BadInput, match="cannot be swapped now: already an operator"):
        apply_(swapped, steps)
    with pytest.raises(BadInput, match="does not run on inputs"):
        apply_(model := network(), steps, data=torch.randn(1, 4, 8, 8))
    assert type(model[3]) is nn.Conv2d
    with pytest.raises(BadInput, match="needs a torch"):
        apply_(network(), steps, optimizer="sgd")


def test_a_saved_plan_applies_to_a_fresh_model(tmp_path):
    path = plan(network(), X, to="splconv(alpha=0.75)").save(tmp_path / "plan.json")
    model = network()
    apply_(model, Plan.load(path))
    assert isinstance(model[6], SPLConv2d)
    assert model[6].alpha == 0.75


def test_what_the_new_layer_inherits():
    model = network().to(torch.bfloat16).to(memory_format=torch.channels_last)
    model[3].requires_grad_(False)
    model[3].eval()
    steps = plan(model, X.bfloat16(), to="splconv")
    apply_(model, steps, data=X.bfloat16())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model[3].parameters())
    assert all(p.requires_grad for p in model[6].parameters())
    assert [m.training for m in model[3].modules()] == [False] * len(list(model[3].modules()))
    assert all(m.training for m in model[6].modules())
    assert model[3].stencil1.weight.is_contiguous(memory_format=torch.channels_last)
    assert model(X.bfloat16()).isfinite().all()


def test_hooks_move_and_their_handles_still_work():
    model, seen = network(), []
    handle = model[3].register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    model[3].register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True)
    model[3].register_full_backward_hook(lambda *_: seen.append("back"))
    applied = apply_(model, plan(model, X, to="hetconv"))
    seen.clear()
    model(X).sum().backward()
    assert seen == ["before", "HetConv2d", "back"]
    handle.remove()
    model(X)
    assert seen[3:] == ["before"]
    applied.undo_()
    seen.clear()
    model(X).sum().backward()
    assert seen == ["before", "back"]


def test_undo_after_training_gives_the_very_model_back():
    model = network()
    before, expected = snapshot(model), model.eval()(X)
    model.train()
    applied = apply_(model, plan(model, X, to="depthwise_separable"))
    frozen = {k: v for k, v in before[1].items() if not k.startswith(("3", "6"))}
    optimizer = torch.optim.SGD([*model[3].parameters(), *model[6].parameters()], 0.1)
    model.eval()
    model(X).square().mean().backward()
    optimizer.step()
    applied.undo_()
    assert [m.training for m in model.modules()] == [False] * len(list(model.modules()))  # the model's mode now
    assert_as(model.train(), before)
    assert torch.equal(model.eval()(X), expected)
    assert frozen
    with pytest.raises(BadInput, match="already undone"):
        applied.undo_()


def test_shared_modules_are_replaced_everywhere():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.left = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))
            self.right = nn.ModuleDict({"same": self.left[0]})

        def forward(self, x):
            return self.right["same"](self.left(self.stem(x)))

    model = Twice()
    before = snapshot(model)
    applied = apply_(model, plan(model, X, to="hetconv"))
    assert isinstance(model.left[0], HetConv2d)
    assert model.left[0] is model.right["same"]
    assert len(applied) == 1
    applied.undo_()
    assert_as(model, before)
    one, two = (Swap(name, "hetconv", None, None, "") for name in ("left.0", "right.same"))
    with pytest.raises(BadInput, match="one shared module under two names"):
        apply_(model, [one, two])


def test_wrapped_and_compiled_models_use_the_new_layers():
    inner = network().eval()
    compiled = torch.compile(inner, backend="aot_eager")
    compiled(X)
    apply_(compiled, plan(compiled, X, to="hetconv"))
    assert isinstance(inner[3], HetConv2d)
    with torch.no_grad():
        assert torch.allclose(compiled(X), inner(X), atol=1e-5)
    parallel = nn.DataParallel(network())
    apply_(parallel, plan(parallel, X, to="hetconv"))
    assert isinstance(parallel.module[3], HetConv2d)


def test_a_swapped_model_learns():
    model = network()
    apply_(model, plan(model, X, to="splconv"), init="fresh")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    target, losses = torch.zeros(2, 12, 6, 5), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.mse_loss(model(X), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_model_on_the_meta_device():
    with torch.device("meta"):
        model = network()
    apply_(model, plan(model, X.to("meta"), to="depthwise_separable"), init="fresh")
    assert isinstance(model[3], DepthwiseSeparableConv2d)
    assert all(p.is_meta for p in model.parameters())


def test_a_weight_that_is_no_number_is_named_with_its_layer():
    model = network()
    with torch.no_grad():
        model[6].weight[0] = float("inf")
    with pytest.raises(BadInput, match=r"^6: the convolution's weight has NaN or infinite numbers"):
        apply_(model, plan(model, X, to="hetconv(part=4)"))
    assert type(model[3]) is nn.Conv2d
