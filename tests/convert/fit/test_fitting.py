"""`apply_(init="fit")`: exact where it can be, never worse on images held out, in the network's order, and undone."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from leanconv.convert import Plan, Swap, apply_, plan
from leanconv.convert.fit import fitting, observed, twin, whole
from leanconv.convert.fit.batches import Batches
from leanconv.errors import BadInput
from leanconv.nn import HetConv2d, SPLConv2d

HETCONV = "hetconv(part=4)"


def pictures(count=48, channels=3, side=10, seed=0):
    """Smooth random images: neighbouring pixels are alike, as in photographs."""
    dice = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, side // 2 + 1, side // 2 + 1, generator=dice)
    return F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)


def stack(widths=(3, 8, 8, 12), norm=True, seed=0, **options):
    """A chain of 3x3 convolutions, each with BatchNorm (settled on `pictures`) and ReLU."""
    torch.manual_seed(seed)
    layers = []
    for c, o in pairwise(widths):
        layers.append(nn.Conv2d(c, o, 3, padding=1, bias=not norm, **options))
        layers += [nn.BatchNorm2d(o), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
    return settled(nn.Sequential(*layers))


def settled(model):
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(pictures(seed=5, channels=next(model.parameters()).shape[1]))
    return model.eval()


class Pair(nn.Module):
    """A residual block: two convolutions and the input."""

    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def residual(blocks=2, seed=0):
    torch.manual_seed(seed)
    return settled(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *(Pair() for _ in range(blocks))))


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_as(model, before):
    now = model.state_dict()
    assert list(now) == list(before)
    assert all(torch.equal(now[key], before[key]) for key in now)


def distance(model, other, x):
    with torch.no_grad():
        return float((model(x) - other(x)).norm() / other(x).norm())


def test_a_network_of_the_operators_family_is_met_exactly():
    model = stack().double()
    with torch.no_grad():
        for index in (3, 6):
            family = HetConv2d.from_conv(model[index], part=4)
            model[index].weight.copy_(family.dense_weight())
    dense, x = copy.deepcopy(model), pictures().double()
    applied = apply_(model, plan(model, x, to=HETCONV), init="fit", data=x)
    assert max(layer.error for layer in applied.layers) < 1e-12
    assert distance(model, dense, pictures(seed=1).double()) < 1e-2  # the statistics of BatchNorm are of these images


def test_inputs_decide_which_taps_matter():
    """Channel 2k equals 2k + 1: a HetConv of two parts computes any kernel; only the covariance tells."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)).double()
    x = pictures(32, 4).double().repeat_interleave(2, 1)
    dense = copy.deepcopy(model)
    applied = apply_(model, plan(model, x, to="hetconv(part=2)", where="*"), init="fit", data=x)
    assert applied.layers[0].error_before > 0.2
    assert applied.layers[0].error < 2e-3
    assert distance(model, dense, pictures(8, 4, seed=1).double().repeat_interleave(2, 1)) < 2e-3


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("to", [HETCONV, "depthwise_separable", "splconv"])
def test_a_fit_is_no_worse_than_a_projection_on_images_of_neither(norm, to):
    model = stack(norm=norm)
    dense, projected = copy.deepcopy(model), copy.deepcopy(model)
    apply_(projected, plan(model, pictures(2), to=to))
    applied = apply_(model, plan(model, pictures(2), to=to), init="fit", data=pictures())
    assert all(layer.error <= layer.error_before for layer in applied.layers)
    assert {layer.how for layer in applied.layers} == {"fitted"}
    fresh = pictures(seed=1)
    assert distance(model, dense, fresh) < 0.9 * distance(projected, dense, fresh)
    assert applied.output_error < 0.9 * distance(projected, dense, fresh)


def test_later_layers_make_up_for_earlier_ones():
    """Against the same fit of each layer at the original's inputs."""
    x, fresh = pictures(), pictures(seed=1)
    dense = stack((3, 8, 8, 8, 8), norm=False)
    steps = plan(dense, x, to=HETCONV)
    model, apart = copy.deepcopy(dense), copy.deepcopy(dense)
    apply_(model, steps, init="fit", data=x)
    for swap in steps.swapped:
        alone = copy.deepcopy(dense)
        apply_(alone, Plan([swap]), init="fit", data=x)
        apart[int(swap.name)] = alone[int(swap.name)]
    assert distance(model, dense, fresh) < 0.95 * distance(apart, dense, fresh)


def test_blocks_are_refined_as_one():
    model, x = residual(), pictures()
    dense = copy.deepcopy(model)
    applied = apply_(model, plan(model, x, to=HETCONV), init="fit", data=x)
    assert [block.name for block in applied.blocks] == ["1", "2"]
    assert all(block.error <= block.error_before for block in applied.blocks)
    assert any(block.error < 0.95 * block.error_before for block in applied.blocks)
    assert "2 blocks refined" in str(applied)
    assert distance(model, dense, pictures(seed=1)) < 0.6


def test_norms_behind_new_layers_are_refined_with_them(monkeypatch):
    """A layer without a bias cannot shift its output; the norm behind it can."""
    dense, x = residual(1), pictures()
    steps, errors = plan(dense, x, to=HETCONV), []
    for found in (fitting.affine, lambda norms, within: []):
        monkeypatch.setattr(fitting, "affine", found)
        monkeypatch.setattr(whole, "affine", found)
        model = copy.deepcopy(dense)
        apply_(model, steps, init="fit", data=x)
        errors.append(distance(model, dense, pictures(seed=1)))
    assert errors[0] < errors[1]


class Branches(nn.Module):
    """Built in another order than it runs: `late` after the branches `a` and `b`, and `twice` two times."""

    def __init__(self):
        super().__init__()
        self.late, self.twice = nn.Conv2d(8, 4, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.b, self.a = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.stem, self.unused = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x = F.relu_(self.stem(x))
        x = self.twice(F.relu_(self.twice(x)))
        return self.late(F.relu(self.a(x)) + F.relu(self.b(x)))


def test_the_order_is_that_of_the_run(monkeypatch):
    torch.manual_seed(0)
    model, x = Branches(), pictures()
    dense, order = copy.deepcopy(model), []
    plain = fitting._Fit._layer
    monkeypatch.setattr(fitting._Fit, "_layer", lambda self, seen: (order.append(seen), plain(self, seen)))
    names = ("unused", "late", "b", "a", "twice")
    applied = apply_(model, [Swap(n, HETCONV, None, None, "") for n in names], init="fit", data=x)
    assert [seen.site.name for seen in order] == ["twice", "a", "b", "late", "unused"]
    assert [seen.calls for seen in order] == [2, 1, 1, 1, 0]
    assert [layer.name for layer in applied.layers] == list(names)
    assert applied.layers[0].how == "projected"
    assert "unused: the data does not reach it" in str(applied)
    assert all(layer.error <= layer.error_before for layer in applied.layers[1:])
    assert distance(model, dense, pictures(seed=1)) < 0.8


def test_undo_gives_the_statistics_back_too():
    model, x = stack().train(), pictures()
    before, modules = state(model), list(model.modules())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    groups = list(optimizer.param_groups[0]["params"])
    applied = apply_(model, plan(model, x, to=HETCONV), init="fit", data=x, optimizer=optimizer)
    assert not torch.equal(model[4].running_mean, before["4.running_mean"])
    assert applied.norms == 2
    assert [p is q for p, q in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True)]
    applied.undo_()
    assert_as(model, before)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], groups, strict=True))


@pytest.mark.parametrize("at", [2, 9, 14])
def test_an_interrupted_fit_changes_nothing(at):
    class Interrupting(list):
        left = at

        def __iter__(self):
            for batch in super().__iter__():
                Interrupting.left -= 1
                if not Interrupting.left:
                    raise KeyboardInterrupt
                yield batch

    model = residual(1).train()
    before, modules = state(model), list(model.modules())
    with pytest.raises(KeyboardInterrupt):
        apply_(model, plan(model, pictures(2), to=HETCONV), init="fit", data=Interrupting(pictures().split(16)))
    assert Interrupting.left <= 0
    assert_as(model, before)
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert all(module.training for module in model.modules())
    assert not any(hooks for m in model.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks))


def test_what_the_model_keeps():
    model, x = residual(1), pictures()
    model[1].conv1.requires_grad_(False)
    model.to(memory_format=torch.channels_last).train()
    model(x).sum().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before, seen = state(model), []
    model[1].conv2.register_forward_hook(lambda module, args, out: seen.append(type(module).__name__))
    steps = plan(model, x, to=HETCONV)
    results = []
    for _ in range(2):
        again = copy.deepcopy(model)
        applied = apply_(again, steps, init="fit", data=list(x.split(16)))
        results.append(state(again))
    assert all(torch.equal(a, b) for a, b in zip(results[0].values(), results[1].values(), strict=True))
    applied = apply_(model, steps, init="fit", data=list(x.split(16)))
    assert isinstance(model[1].conv1, HetConv2d)
    assert not any(p.requires_grad for p in model[1].conv1.parameters())
    assert all(p.requires_grad and p.grad is None for p in model[1].conv2.parameters())
    assert all(
        torch.equal(dict(model.named_parameters())[name].grad, grads[name]) for name in ("0.weight", "1.bn1.bias")
    )
    assert all(module.training for module in model.modules())
    assert all(torch.equal(now, before[key]) for key, now in model.state_dict().items() if key.startswith("0."))
    seen.clear()
    model(x)
    assert seen == ["HetConv2d"]
    assert applied.to_dict()["layers"][0]["seconds"] > 0


def test_memory_does_not_grow_with_the_images(monkeypatch):
    """What is held to refine on has a limit in bytes, and sums have the layer's size."""
    one = 2 * 8 * 10 * 10 * 4  # bytes of the input and output of a layer of eight channels, for one image
    for room in (fitting, whole):
        monkeypatch.setattr(room, "MEMORY", 24 * one)
    held, refine = {}, fitting.refine_

    def counting(module, parameters, examples, *rest, **named):
        held.setdefault(count, []).append(sum(each.bytes for each in examples))
        return refine(module, parameters, examples, *rest, **named)

    monkeypatch.setattr(fitting, "refine_", counting)
    monkeypatch.setattr(whole, "refine_", counting)
    for count in (96, 384):
        model = residual()
        batches = list(pictures(count).split(8))
        apply_(model, plan(model, batches[0], to=HETCONV), init="fit", data=batches, whole_steps=1)
    assert held[96] == held[384]
    assert max(held[96]) <= 32 * one  # the batch that fills the room is the last


def test_a_model_in_bfloat16():
    model, x = stack().bfloat16(), pictures().bfloat16()
    dense, projected = copy.deepcopy(model), copy.deepcopy(model)
    apply_(projected, plan(model, x, to=HETCONV))
    applied = apply_(model, plan(model, x, to=HETCONV), init="fit", data=x)
    assert {p.dtype for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()} == {torch.bfloat16}
    assert all(layer.error < layer.error_before for layer in applied.layers)
    assert distance(model, dense, x) < distance(projected, dense, x)


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"padding_mode": "reflect"}])
def test_strides_dilations_and_padding_modes(options):
    model, x = stack((4, 4, 8), norm=False, **options), F.avg_pool2d(pictures(channels=4, side=17), 5, 1)
    applied = apply_(model, plan(model, x, to="hetconv(part=2)", where="*"), init="fit", data=x)
    assert all(layer.error <= layer.error_before for layer in applied.layers)
    assert applied.layers[0].error < 0.95 * applied.layers[0].error_before


def test_one_picture_does_no_harm():
    model = residual(1)
    dense, projected = copy.deepcopy(model), copy.deepcopy(model)
    apply_(projected, plan(model, pictures(1), to=HETCONV))
    applied = apply_(model, plan(model, pictures(1), to=HETCONV), init="fit", data=pictures(1))
    assert "data holds one image" in str(applied)
    fresh = pictures(seed=1)
    assert distance(model, dense, fresh) < 1.1 * distance(projected, dense, fresh)


def test_patches_that_are_too_large_for_a_gram(monkeypatch):
    monkeypatch.setattr(fitting, "MOST_D", 30)
    model, x = stack(norm=False), pictures()
    applied = apply_(model, plan(model, x, to=HETCONV), init="fit", data=x)
    assert "2: a patch has 72 numbers, over 30; projected and refined" in applied.notes
    assert all(layer.error < layer.error_before for layer in applied.layers)


def test_bad_input():
    model, x = stack(), pictures()
    steps = plan(model, x, to=HETCONV)
    before = state(model)
    for data, text in (
        (None, "init='fit' needs data="),
        (iter([x]), "can be read once only"),
        ([], "holds no batch"),
        (torch.randn(4, 5, 8, 8), "does not run on inputs"),
        (x[0], "N C H W|does not run on inputs"),
        (x.log(), "NaN or infinite"),
    ):
        with pytest.raises(BadInput, match=text):
            apply_(model, steps, init="fit", data=data)
        assert_as(model, before)
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(BadInput, match="NaN or infinite"):
        apply_(model, steps, init="fit", data=x)
    assert type(model[3]) is nn.Conv2d


@pytest.mark.parametrize("to", ["doconv", "odconv"])
def test_what_is_exact_already_is_not_fitted(monkeypatch, to):
    for used in ("refine_", "finish_", "become_nearest_"):
        monkeypatch.setattr(fitting, used, lambda *given, **named: pytest.fail("nothing is left to fit"))
    model, x = stack(), pictures()
    norms = {key: value for key, value in state(model).items() if key.startswith(("1.", "4.", "7."))}
    applied = apply_(model, plan(model, x, to=to), init="fit", data=x)
    assert {layer.how for layer in applied.layers} == {"projected"}
    assert max(layer.error for layer in applied.layers) < 1e-6
    assert applied.output_error_before == applied.output_error < 1e-6
    assert applied.norms == 0
    assert all(torch.equal(state(model)[key], value) for key, value in norms.items())


def test_exact_layers_behind_changed_ones_are_fitted():
    """An exact layer still has the error of what its changed inputs make of it."""
    model, x = stack(), pictures()
    steps = plan(model, x, to=lambda name, spec: HETCONV if name == "3" else "doconv")
    layers = {layer.name: layer for layer in apply_(model, steps, init="fit", data=x).layers}
    assert layers["3"].how == layers["6"].how == "fitted"
    assert layers["6"].error < layers["6"].error_before


def test_a_constant_shift_alone_is_no_exact_layer(monkeypatch):
    """The norm behind takes it away from the layer's error, and has to follow it."""
    model, x = stack((3, 8, 8)), pictures()
    dense, project = copy.deepcopy(model), HetConv2d.project_

    def shifted(self, conv, gram=None):
        done = project(self, conv, gram)
        self.scale_output_(torch.ones(8), torch.full((8,), 3.0))
        return done

    monkeypatch.setattr(HetConv2d, "project_", shifted)
    apply_(model, plan(model, x, to="hetconv(part=1)"), init="fit", data=x, whole_steps=0)
    assert distance(model, dense, x) < 1e-3


def test_a_fit_that_raises_the_error_of_the_network_is_taken_back(monkeypatch):
    model, x = residual(), pictures()
    projected, norms = copy.deepcopy(model), [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    steps = plan(model, x, to=HETCONV)
    apply_(projected, steps)
    before = [copy.deepcopy(norm.state_dict()) for norm in norms]
    monkeypatch.setattr(fitting, "finish_", lambda *given: 9.0)
    applied = apply_(model, steps, init="fit", data=x)
    assert_as(model, state(projected))
    assert all(
        torch.equal(norm.state_dict()[key], kept[key]) for norm, kept in zip(norms, before, strict=True) for key in kept
    )
    assert applied.output_error == pytest.approx(distance(projected, residual(), x[:12]), rel=1e-4)
    assert {layer.how for layer in applied.layers} == {"projected"}
    assert not applied.blocks
    assert "to 9 and was taken back" in str(applied)


def test_numbers_beyond_float32_name_the_layer():
    model, x = stack(norm=False), pictures()
    with pytest.raises(BadInput, match=r"^2: squares of its inputs are beyond float32"):
        apply_(model, plan(model, x, to=HETCONV), init="fit", data=x * 1e25)


def test_a_model_that_reads_the_weights_of_its_layers():
    class Reading(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return F.conv2d(self.second(self.first(x)), self.second.weight)

    model, x = Reading().eval(), pictures()
    with pytest.raises(BadInput, match=r"with its new layers: .*'HetConv2d' object has no attribute 'weight'"):
        apply_(model, plan(model, x, to=HETCONV), init="fit", data=x)
    assert type(model.second) is nn.Conv2d


def test_under_inference_mode_new_layers_can_still_learn():
    model, x = stack(), pictures()
    steps = plan(model, x, to=HETCONV)
    with torch.inference_mode():
        apply_(model, steps, init="fit", data=x, whole_steps=1)
        made = stack()
    model.train()(x).sum().backward()
    assert model[3].spatial.grad is not None
    with pytest.raises(BadInput, match=r"^0\.weight was made under torch.inference_mode"):
        apply_(made, steps, init="fit", data=x)
    assert not next(copy.deepcopy(made).parameters()).is_inference()  # what the message advises


def test_the_whole_network_takes_as_many_steps_as_its_size_allows(monkeypatch):
    seen = []
    monkeypatch.setattr(whole, "refine_", lambda *given, least=1, **named: seen.append((given[4], least)))
    for most, expected in (
        (1e12, 600),
        (1.0, 20),
        (50 * 8 * 1000.0, 50),
    ):  # batches of 8, 8 and 8: eight are held out
        seen.clear()
        monkeypatch.setattr(whole, "MACS", most)
        monkeypatch.setattr(whole, "macs", lambda model, batch: 1000 * len(batch))  # of each image
        fit_a_network([torch.randn(8, 3, 8, 8) for _ in range(4)])
        assert seen[-1] == (expected, 8)


@pytest.mark.parametrize("size", [(8, 17), (9, 8), (1, 3), (64, 32)])
def test_the_whole_network_sees_images_flipped_and_shifted_with_what_the_original_gives_for_them(size):
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten()).eval()
    made = twin.Twin(model)
    batch = torch.arange(2 * 2 * size[0] * size[1]).view(2, 2, *size).float()
    example = whole._example(made, batch)
    found = []
    for _ in range(2):
        varied = whole._variation(made, batch)
        found.append([varied(example) for _ in range(40)])
    starts = set()
    for one, again in zip(*found, strict=True):
        images = one.arguments[0][0]
        assert torch.equal(images, again.arguments[0][0])
        assert torch.equal(one.target, model(images))
        # A number names the pixel that it was: the corner tells the shift, its neighbour the flip.
        corner = images[0, 0, size[0] // 2, size[1] // 2]
        starts.add((int(corner), int(images[0, 0, size[0] // 2, size[1] // 2 - 1] - corner)))
        assert images.shape == batch.shape
    moves = {(value // size[1] - size[0] // 2, step) for value, step in starts}
    assert {abs(row) for row, _ in moves} <= set(range(size[0] // 8 + 1))
    assert len(moves) > 1
    assert {step for _, step in moves} >= {1, -1} or size[1] < 8


def test_what_is_no_image_is_not_moved():
    made = twin.Twin(nn.Linear(4, 4).eval())
    assert whole._variation(made, torch.randn(3, 4)) is None
    assert whole._variation(made, {"x": torch.randn(3, 4, 8, 8)}) is None
    assert whole._variation(made, (torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8))) is None


def fit_a_network(batches):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten())
    return apply_(model, plan(model, batches[0], to="hetconv(part=4)"), init="fit", data=batches)


def test_macs_are_those_of_the_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    assert observed.macs(model, torch.randn(2, 3, 4, 4)) == 2 * (16 * 8 * 27 + 128 * 5)


@pytest.mark.parametrize("to", ["psconv", "inception_dw"])
def test_an_operator_of_a_larger_kernel_behind_a_bias(to):
    torch.manual_seed(0)
    groups = 8 if to == "inception_dw" else 1
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.ReLU()).eval()
    x = torch.randn(16, 8, 12, 12) + 1
    applied = apply_(model, plan(model, x, to=to, where="0"), init="fit", data=x)
    assert applied.layers[0].error <= applied.layers[0].error_before


@pytest.mark.parametrize("kind", ["after", "before"])
def test_the_users_hooks_work_on_the_new_layers_output(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten()).eval()
    if kind == "after":
        model[2].register_forward_hook(lambda module, arguments, output: output * 2 + 1)
    else:
        model[2].register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    x = torch.randn(32, 3, 10, 10)
    with torch.no_grad():
        wanted = model(x)
        applied = apply_(model, plan(model, x, to="hetconv(part=4)"), init="fit", data=x)
        off = float((model(x) - wanted).norm() / wanted.norm())
    assert 0.5 * applied.output_error < off < 2 * applied.output_error


class Unreachable(nn.Sequential):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


def test_a_network_whose_answer_has_no_gradient_keeps_its_closed_form():
    torch.manual_seed(0)
    model = Unreachable(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)).eval()
    applied = apply_(
        model, plan(model, torch.randn(1, 3, 8, 8), to="hetconv(part=4)"), init="fit", data=torch.randn(32, 3, 8, 8)
    )
    assert applied.layers[0].how == "fitted"


def test_undone_after_a_change_of_type():
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
    )
    model = nn.Sequential(*layers).eval()
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    applied = apply_(
        model, plan(model, torch.randn(1, 3, 8, 8), to="hetconv(part=4)"), init="fit", data=torch.randn(32, 3, 8, 8)
    )
    assert not torch.equal(model[4].running_mean, before["4.running_mean"])
    model.double().float()
    applied.undo_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_numbers_that_are_none_anywhere_in_the_network():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1))
    model[3].weight.data[0] = float("nan")
    with pytest.raises(BadInput, match=r"3\.weight holds NaN"):
        apply_(
            model, plan(model, torch.randn(1, 3, 8, 8), to="hetconv(part=4)"), init="fit", data=torch.randn(8, 3, 8, 8)
        )


@pytest.mark.parametrize(("to", "least"), [("splconv", 2.0), ("spconv", 1.5)])
def test_gates_rest_at_one_half_where_a_norm_takes_a_factor_away(to, least, monkeypatch):
    """A layer of an operator's linear family: gates, and a ReLU that cuts half of a branch, are all that is wrong."""
    torch.manual_seed(0)
    model = stack((3, 8, 8), seed=4)
    conv = model[3]
    with torch.no_grad():
        weight = torch.zeros_like(conv.weight)
        weight[:, 4:, 1, 1] = torch.randn(8, 4)
        weight[:, :4] = torch.randn(8, 4, 1, 1) * torch.randn(4, 3, 3)
        if to == "spconv":  # two groups of filters with a k x k on their own channels, 1x1s on the others
            weight[:4, 2:4], weight[4:, :2] = 0.0, 0.0
        conv.weight.copy_(weight)
    settled(model)
    dense, loud, x = copy.deepcopy(model), copy.deepcopy(model), pictures(256, side=12)
    applied = apply_(model, plan(model, x, to=to), init="fit", data=x)
    monkeypatch.setattr("leanconv.convert.fit.closed_form.has_gates", lambda layer: False)
    before = apply_(loud, plan(loud, x, to=to), init="fit", data=x)
    assert applied.layers[0].error * least < before.layers[0].error
    fresh = pictures(64, side=12, seed=1)
    assert distance(model, dense, fresh) * least < distance(loud, dense, fresh)
    assert distance(model, dense, fresh) < 0.1


def gated(to, monkeypatch, **options):
    """A network whose second layer is of an operator's linear family; its error after a fit, on other images."""
    torch.manual_seed(0)
    model = stack((3, 8, 8), seed=4)
    with torch.no_grad():
        weight = torch.zeros_like(model[3].weight)
        weight[:, 4:, 1, 1], weight[:, :4] = torch.randn(8, 4), torch.randn(8, 4, 1, 1) * torch.randn(4, 3, 3)
        if to.startswith("spconv"):
            weight[:4, 2:4], weight[4:, :2] = 0.0, 0.0
        if options.get("loud"):  # a channel without a mean, whose gate stays where it is
            model[3].padding_mode = "circular"
            model[3]._reversed_padding_repeated_twice = [1, 1, 1, 1]
            weight[0] = 0.0
            weight[0, 0, 1, 0], weight[0, 0, 1, 2] = 300.0, -300.0
        model[3].weight.copy_(weight)
    model[4].eps = options.get("eps", 1e-5)
    settled(model)
    if options.get("plain"):  # the closed form alone
        for room in (fitting, whole):
            monkeypatch.setattr(room, "refine_", lambda *given, **named: False)
    dense, x = copy.deepcopy(model), pictures(256, side=12)
    apply_(model, plan(model, x, to=to), init="fit", data=x)
    return distance(model, dense, pictures(64, side=12, seed=1))


def test_a_loud_channel_does_not_decide_for_the_others(monkeypatch):
    assert gated("spconv", monkeypatch, loud=True) < 0.05


@pytest.mark.parametrize("to", [HETCONV, "splconv"])
def test_the_error_of_a_layer_is_that_of_the_norm_behind_it(to, monkeypatch):
    """Channels of very different loudness, of which the norm makes numbers of its own sizes."""
    model, x = stack((3, 8, 8)), pictures(128)
    with torch.no_grad():
        model[3].weight.mul_(torch.logspace(-1.5, 1.5, 8)[:, None, None, None])
        settled(model)
        model[4].weight.uniform_(0.1, 3)
    for room in (fitting, whole):
        monkeypatch.setattr(room, "refine_", lambda *given, **named: False)
    dense, held = copy.deepcopy(model), Batches(x, model).divided()[0]
    applied = apply_(model, plan(model, x, to=to), init="fit", data=x)
    with torch.no_grad():
        want, found = dense[:5](held), model[:5](held)
        loud, made = dense[:4](held), model[:4](held)

    def relative(a, b):
        a, b = (each - each.mean((0, 2, 3), keepdim=True) for each in (a, b))
        return float((a - b).norm() / b.norm())

    assert applied.layers[0].error == pytest.approx(relative(found, want), rel=0.02)
    assert applied.layers[0].error != pytest.approx(relative(made, loud), rel=0.05)


def test_a_gate_that_would_be_closed_leaves_numbers():
    """A channel so loud that its gate is one to the last bit: the other branch is divided by no zero."""
    layer = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    with torch.no_grad():
        layer.weight[0].mul_(3000)
    new = SPLConv2d(8, 8, 3, padding=1, bias=False)
    assert new.project_(layer)
    assert all(bool(p.isfinite().all()) for p in new.parameters())
    assert bool(new.eval()(torch.randn(2, 8, 6, 6)).isfinite().all())


def test_the_factor_is_taken_away_behind_a_norm_of_a_large_eps(monkeypatch):
    small, large = (gated("spconv", monkeypatch, eps=eps, plain=True) for eps in (1e-5, 1e-3))
    assert large < 1.1 * small + 0.005


def test_a_layer_with_a_norm_in_one_branch_alone_is_not_lifted(monkeypatch):
    assert gated("spconv(inner_norms=1)", monkeypatch) < 0.03


def test_in_train_mode_the_network_starts_as_it_is_in_eval_mode():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    x = torch.randn(64, 3, 12, 12)
    for _ in range(60):
        model(x)  # statistics of these images
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    applied = apply_(model, plan(model, x, to="depthwise_separable"), init="fit", data=x)
    with torch.no_grad():
        answer = model(x)
        trained = copy.deepcopy(model).train()(x)
    assert float((trained - answer).norm() / answer.norm()) < 0.02
    assert "1 BatchNorms" in str(applied) or applied.norms == 1
    applied.undo_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
